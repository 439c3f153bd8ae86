"""What is printed and recorded of one modality: the table, the ratios, and whether the targets hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from ingest_parts import ours
from ingest_parts.measure import EpochCost
from ingest_parts.modalities import Modality

DATALOADER, RAY_GUIDE = "DataLoader on the original", "Ray Data as its guide writes it"
_SHORT = {
    ours.LOCAL: "local",
    ours.OWN: "own tensors",
    ours.CACHE: "cache",
    ours.STREAM: "stream",
    ours.BUCKETS: "length buckets",
}
_FIRST_BATCH_MS = {ours.LOCAL: 50.0, ours.STREAM: 300.0}
_OVER_DATALOADER = {"fmri": 3.0, "trials": 1.7, "cubes": 2.0}
_OVER_RAY_GUIDE = {ours.STREAM: 4.0, ours.LOCAL: 8.0}
_OVER_LIMIT, _OVER_PEERS, _OVER_PEERS_DECODING = 0.8, 1.0, 0.95


@dataclass(frozen=True)
class Result:
    """One way's epochs: the first, then the later ones that the medians are of."""

    name: str
    modality: Modality
    costs: Sequence[EpochCost]
    read_bytes: int
    following_s: Sequence[float] = ()  # waits for the first batch of an epoch straight after another
    stepped_s: Sequence[float] = ()  # the same with a training step for each batch, where rows are decoded
    beside: Mapping[str, Sequence[EpochCost]] = field(default_factory=dict)  # ours, in turn with a peer

    @property
    def later(self) -> Sequence[EpochCost]:
        """The epochs after the first; of a way that was too slow for a second one, the first."""
        return self.costs[1:] or self.costs

    @property
    def rates(self) -> list[float]:
        """Rows per second of the later epochs."""
        return [self.modality.num_rows / cost.seconds for cost in self.later]

    @property
    def rate(self) -> float:
        """Median rows per second."""
        return median(self.rates)

    @property
    def first_batch_ms(self) -> float:
        """Median milliseconds to the first batch of a later epoch."""
        return median(cost.first_batch_s for cost in self.later) * 1e3

    @property
    def cpu_s_per_1000(self) -> float:
        """Median CPU seconds per 1,000 rows."""
        return median(cost.cpu_s for cost in self.later) / self.modality.num_rows * 1e3

    def when_beside(self, peer: "Result") -> "Result":
        """Return this way as it was measured in turn with a peer, where it was."""
        return replace(self, costs=peer.beside.get(self.name, self.costs))

    def over(self, peer: "Result") -> float:
        """Return the ratio of the rows per second to a peer's."""
        return self.when_beside(peer).rate / peer.rate


def print_table(results: Sequence[Result], missing: Sequence[str]) -> None:
    """Print a modality's table; spreads are the slowest and the fastest of the later epochs."""
    modality = results[0].modality
    print(
        f"\n{modality.name}: {modality.num_rows:,} rows, {modality.delivered_bytes / 1e9:.2f} GB delivered, "
        f"batches of {modality.batch_size}; medians of up to {len(results[0].rates)} epochs after the first"
    )
    print(
        f"{'':40}{'rows/s':>10}{'MB/s':>8}{'spread rows/s':>18}{'CPU-s/1,000':>13}{'GB/epoch':>10}"
        f"{'first batch':>13}{'of epoch 1':>12}{'rows/s then':>13}"
    )
    row_bytes = modality.delivered_bytes / modality.num_rows
    for result in results:
        spread = f"{min(result.rates):,.0f}–{max(result.rates):,.0f}"
        first = result.costs[0]
        print(
            f"{result.name:40}{result.rate:10,.0f}{result.rate * row_bytes / 1e6:8,.0f}{spread:>18}"
            f"{result.cpu_s_per_1000:13.3f}{result.read_bytes / 1e9:10.2f}{result.first_batch_ms:10,.0f} ms"
            f"{first.first_batch_s * 1e3:9,.0f} ms{modality.num_rows / first.seconds:13,.0f}"
        )
    for line in missing:
        print(line)


def print_ratios(results: Sequence[Result]) -> None:
    """Print our one-process ways' rows/s over every other way's."""
    own = [result for result in results if result.name in _SHORT]
    print(f"\n{'rows/s over that of':40}" + "".join(f"{_SHORT[result.name]:>16}" for result in own))
    for peer in results:
        if not peer.name.startswith("voxray"):
            print(f"{peer.name:40}" + "".join(f"{mine.over(peer):14.2f} ×" for mine in own))


def print_targets(results: Sequence[Result], quick: bool) -> None:
    """Print each target with what was measured and whether it holds; they are for the full form."""
    print("\ntargets" + (" of the full form, which this tiny data need not reach" if quick else ""))
    for what, measured, wanted, higher in _targets(results):
        holds = measured >= wanted if higher else measured <= wanted
        sign = "≥" if higher else "≤"
        print(f"{what:64}{measured:10.2f}  {sign} {wanted:<8g}{'holds' if holds else 'MISSED'}")


def records(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the records of `--json`: each of our ways against every other way."""
    found: list[dict[str, Any]] = []
    for own in results:
        if not own.name.startswith("voxray"):
            continue
        for peer in results:
            if peer.name.startswith("voxray"):
                continue
            ours_then = own.when_beside(peer)
            values = (
                ("rows/s", ours_then.rate, peer.rate, "higher"),
                ("CPU-s per 1,000 rows", ours_then.cpu_s_per_1000, peer.cpu_s_per_1000, "lower"),
                ("ms to the first batch", ours_then.first_batch_ms, peer.first_batch_ms, "lower"),
            )
            found += [
                {
                    "benchmark": f"ingest {own.modality.name}",
                    "case": f"{own.name} / {peer.name}",
                    "ours": mine,
                    "peer": other,
                    "unit": unit,
                    "ratio": mine / other if other else None,
                    "better": better,
                }
                for unit, mine, other, better in values
            ]
    return found


def _targets(results: Sequence[Result]) -> list[tuple[str, float, float, bool]]:
    """Return (what, measured, wanted, whether more is better)."""
    by_name = {result.name: result for result in results}
    local, modality = by_name[ours.LOCAL], results[0].modality
    peers = [r for r in results if not r.name.startswith("voxray") and r.name != ours.LIMIT]
    decoding = modality.jpeg_folder is not None
    wanted = _OVER_PEERS_DECODING if decoding else _OVER_PEERS
    found: list[tuple[str, float, float, bool]] = []
    if peers:
        best = min(peers, key=local.over)
        found.append((f"local / the fastest peer ({best.name})", local.over(best), wanted, True))
    found.append(("local / the limit", local.over(by_name[ours.LIMIT]), _OVER_LIMIT, True))
    originals = [peer for peer in peers if peer.name.startswith(DATALOADER)]
    if originals and modality.name in _OVER_DATALOADER:
        what = f"local / {DATALOADER}, the faster of 0 and 2 workers"
        found.append((what, min(map(local.over, originals)), _OVER_DATALOADER[modality.name], True))
    if RAY_GUIDE in by_name:
        for name, factor in _OVER_RAY_GUIDE.items():
            ratio = by_name[name].over(by_name[RAY_GUIDE])
            found.append((f"{name} / {RAY_GUIDE}", ratio, factor, True))
    for name, most in _FIRST_BATCH_MS.items():
        wait_ms = median(by_name[name].following_s) * 1e3
        found.append((f"{name}: ms to the first batch, straight after an epoch", wait_ms, most, False))
        if by_name[name].stepped_s:
            wait_ms = median(by_name[name].stepped_s) * 1e3
            what = f"{name}: the same, with steps of {modality.step_s * 1e3:.0f} ms"
            found.append((what, wait_ms, most, False))
    return found
