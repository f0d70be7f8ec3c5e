"""Files of what former versions have saved: pickles and arrays by name, and what came of them afterwards."""

import io
import lzma
import pickle
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "data"
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


class Old:
    """What a file holds; a file that there is not holds nothing."""

    def __init__(self, name):
        self.path, self.arrays = DATA / name, {}
        if self.path.exists():
            with np.load(io.BytesIO(lzma.decompress(self.path.read_bytes()))) as file:
                self.arrays = dict(file)

    def names(self, kind):
        """Names of the entries "kind/name" or "kind/name/...", each once."""
        return list(dict.fromkeys(key.split("/")[1] for key in self.arrays if key.startswith(f"{kind}/")))

    def of(self, kind, name):
        """Arrays of an entry."""
        start = f"{kind}/{name}/"
        return {key.removeprefix(start): value for key, value in self.arrays.items() if key.startswith(start)}

    def content(self, name):
        """Bytes of a file."""
        return self.arrays[f"bytes/{name}"].tobytes()

    def load(self, name):
        """What a pickle holds."""
        return pickle.loads(self.content(name))

    def keep(self, name, saved):
        self.arrays[f"bytes/{name}"] = np.frombuffer(saved, np.uint8)

    def put(self, kind, name, arrays):
        self.arrays |= {f"{kind}/{name}/{key}": np.array(value) for key, value in arrays.items()}

    def save(self):
        file = io.BytesIO()
        np.savez(file, **self.arrays)
        self.path.write_bytes(lzma.compress(file.getvalue()))  # as one, for its parts are alike

    def check(self, name, found):
        """Compare with what came of an entry when it was recorded, to rounding: machines differ."""
        wanted = self.of("after", name)
        assert sorted(found) == sorted(wanted)
        for key, want in wanted.items():
            got = np.asarray(found[key])
            assert (got.dtype, got.shape) == (want.dtype, want.shape), key
            rounding = TOLERANCE.get(want.dtype, 0.0)
            largest = np.abs(want).max(initial=0)
            np.testing.assert_allclose(got, want, rtol=rounding, atol=rounding * largest, err_msg=f"{name}, {key}")
