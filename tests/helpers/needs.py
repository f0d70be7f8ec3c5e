"""Folders of tests that need something: where it is absent, each of their files is shown as skipped."""

import pytest


class Absent(pytest.File):
    """Stands for a file whose imports would fail."""

    def collect(self):
        pytest.skip(self.reason)


def needs(met, reason):
    """Return the hook of a folder's conftest, `pytest_collect_file`, which skips its files unless `met`."""

    @pytest.hookimpl(wrapper=True)
    def collect_file(file_path, parent):
        found = yield
        if met or not found or file_path.name == "conftest.py":
            return found
        absent = Absent.from_parent(parent, path=file_path)
        absent.reason = reason
        return [absent]

    return collect_file
