"""The aims, whether they are met, and how results are printed."""

import re
from typing import Any, NamedTuple


class Aim(NamedTuple):
    """What is wanted of some lines: `of` is "share" of a copy, "us", or a peer (how many times as long it takes)."""

    work: str  # pattern of the whole name
    of: str
    at_least: float | None = None
    at_most: float | None = None
    dims: tuple[int, ...] = ()  # all, if empty
    rows: int = 0  # judged from so many rows on
    ids: int = 0
    device: str = ""  # judged on those devices

    @property
    def wanted(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"

    def is_met(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def speaks_of(self, line: dict[str, Any], device: str) -> bool:
        """Whether a line has what the aim is about."""
        fits = re.fullmatch(self.work, line["work"]) and (not self.dims or line.get("dim") in self.dims)
        large = line.get("rows", self.rows) >= self.rows and line.get("ids", self.ids) >= self.ids
        known = self.of in line or self.of in line.get("peers", {})
        return bool(fits and large and known and self.device in device)


LARGE = {"rows": 2_000_000, "ids": 1_000_000}  # that no cache serves
AIMS = (
    Aim("gather|pool sum", "share", at_least=0.85, dims=(64, 128, 256), **LARGE),
    Aim("gather|pool sum", "share", at_least=0.70, dims=(16, 32), **LARGE),
    Aim(r"update, \w+", "share", at_least=0.70, dims=(128,), **LARGE),  # rows are all different
    Aim("update, Adam", "us", at_most=1260.0, dims=(128,), device="H200", **LARGE),
    Aim("update, SparseAdam", "torch SparseAdam", at_least=5.0, dims=(128,), **LARGE),
    Aim("update, (Sparse)?Adam", "torch dense Adam", at_least=10.0, dims=(128,), rows=10_000_000, ids=1_000_000),
    Aim(r"lookup and update in a graph, \w+", "us", at_most=100.0),
)


def judge(lines: list[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    """Compare lines with the aims; an aim that no line speaks of is there, too, without a verdict."""
    verdicts = []
    for aim in AIMS:
        same: dict[str, Any] = {"aim": aim._asdict(), "wanted": aim.wanted}
        fitting = [line for line in lines if aim.speaks_of(line, device)]
        for line in fitting:
            value = line[aim.of] if aim.of in line else line["peers"][aim.of]["times_as_long"]
            where = {"work": line["work"], "dim": line.get("dim")}
            verdicts.append(same | where | {"value": value, "met": aim.is_met(value)})
        if not fitting:
            verdicts.append(same | {"work": aim.work.replace("|", " or "), "dim": None, "value": None, "met": None})
    return verdicts


def print_verdicts(verdicts: list[dict[str, Any]]) -> None:
    """Print whether aims are met."""
    print("\n| aim | of | wanted | measured | |\n|---|---|--:|--:|---|")
    for each in verdicts:
        where = each["work"] if each["dim"] is None else f"{each['work']}, dim {each['dim']}"
        value = "" if each["value"] is None else f"{each['value']:.3g}"
        met = {True: "met", False: "**missed**", None: "not measured"}[each["met"]]
        print(f"| {where} | {each['aim']['of']} | {each['wanted']} | {value} | {met} |")


HEAD = """| work | dim | rows | ids | µs | GB/s | share of copy | peers: how many times as long |
|---|--:|--:|--:|--:|--:|--:|---|"""


def print_line(line: dict[str, Any]) -> None:
    """Print a row of the table."""
    first = f"| {line['work']} | {line['dim']} | {line['rows']:,} | {line['ids']:,} "
    if "failed" in line:
        print(f"{first}| failed: {line['failed']} | | | |", flush=True)
        return
    peers = [f"{name} {each['times_as_long']:.2f}x" for name, each in line["peers"].items()]
    peers += [f"{name}: left out ({why})" for name, why in line["left_out"].items()]
    print(f"{first}| {line['us']:.1f} | {line['GB/s']:.0f} | {line['share']:.0%} | {', '.join(peers)} |", flush=True)
