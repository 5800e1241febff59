"""What people and programs read: Markdown tables, and one JSON document with every sample."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from bench.results import Results, Sample, Verdict
from bench.rows import IDLE_HOSTS, KERNEL, LOCKD, OURS, RAW, SLEEPS, TITLES, Row, Target, Unit

SCHEMA: Final = 1
NOTHING: Final = "-"

PLACES: Final = {
    "tmpfs": "Image in tmpfs: the cost of the software",
    "disk": "Image on a disk's ext4: real life",
}


def shown(value: float | None, unit: Unit) -> str:
    """A figure with its unit: three digits are enough."""
    if value is None:
        return NOTHING
    if unit is Unit.RATE:
        return f"{value:,.0f}/s"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def times(ratio: float | None) -> str:
    """A ratio."""
    if ratio is None:
        return NOTHING
    return f"{ratio:,.0f} x" if ratio >= 100 else f"{ratio:.2f} x"


def wanted(target: Target, unit: Unit) -> str:
    """A target in words."""
    if target.against is None:
        return f"{'≥' if unit.more_is_better else '≤'} {shown(target.wanted, unit)}"
    rival = "best C peer" if target.against == "best" else TITLES[target.against]
    return f"≥ {target.wanted:g} x {rival}"


def judged(verdicts: Sequence[Verdict]) -> str:
    """`met`, or `missed`; nothing where there is no target."""
    if not verdicts:
        return ""
    return "met" if all(verdict.met for verdict in verdicts) else "**missed**"


def ratio_table(results: Results) -> str:
    """Ours as ratios, with the targets beside them."""
    lines = [
        "| workload | vmfs | best C peer | vmfs / best | target | | / fuse2fs | / vmfs-fuse "
        "| / ext4 loop | / raw |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results.rows():
        ours, peer = _subject(results, row), results.best_peer(row)
        if ours is None:
            continue
        verdicts = results.verdicts(row)
        rivals = ("fuse2fs", "vmfs-fuse", KERNEL, RAW)
        cells = [
            row.title,
            shown(results.median(row, ours), row.unit),
            f"{peer}, {shown(results.median(row, peer), row.unit)}" if peer else NOTHING,
            times(results.ratio(row, ours, peer) if peer else None),
            "; ".join(wanted(target, row.unit) for target in row.targets),
            judged(verdicts),
            *(times(results.ratio(row, ours, rival)) for rival in rivals),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _subject(results: Results, row: Row) -> str | None:
    """The variant that the row judges."""
    known = (name for name in (OURS, LOCKD) if results.median(row, name) is not None)
    return next(known, None)


def median_table(results: Results) -> str:
    """The medians of all the variants that were run."""
    rows = results.rows()
    names = [
        name
        for name in TITLES
        if name != LOCKD and any(results.median(row, name) is not None for row in rows)
    ]
    lines = [f"| workload | {' | '.join(TITLES[name] for name in names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for row in rows:
        cells = [shown(results.median(row, name), row.unit) for name in names]
        if any(cell != NOTHING for cell in cells):
            lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def own_table(results: Results) -> str:
    """What idle hosts cost, and sleeping at once, against one host alone; may be empty."""
    names = [name for name in (IDLE_HOSTS, SLEEPS) if _present(results, name)]
    if not names:
        return ""
    lines = [f"| workload | {' | '.join(f'{TITLES[name]} / vmfs' for name in names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for row in results.rows():
        ratios = [results.ratio(row, name, OURS) for name in names]
        if any(ratio is not None for ratio in ratios):
            lines.append(f"| {row.title} | {' | '.join(times(ratio) for ratio in ratios)} |")
    return "\n".join(lines)


def _present(results: Results, name: str) -> bool:
    return any(results.median(row, name) is not None for row in results.rows())


def summary(results: Results) -> str:
    """How many targets are met, which rows miss, and what idle hosts cost, in a few sentences."""
    verdicts = {row.title: results.verdicts(row) for row in results.rows()}
    met = sum(verdict.met for found in verdicts.values() for verdict in found)
    total = sum(len(found) for found in verdicts.values())
    missed = [title for title, found in verdicts.items() if any(not one.met for one in found)]
    sentences = [f"{met} of {total} targets met."]
    if missed:
        sentences.append(f"Missed: {'; '.join(missed)}.")
    behind = [
        f"{row.title} ({', '.join(kin)})"
        for row in results.rows()
        if (kin := results.behind_kin(row))
    ]
    if behind:
        sentences.append(f"Not ahead of its kin: {'; '.join(behind)}.")
    cost = results.idle_cost()
    if cost is not None:
        verdict = "met" if results.idle_met() else "missed"
        sentences.append(
            f"With 4 idle hosts, the median over the workloads is {times(cost)} the one-host "
            f"figure (target: within 5 %; {verdict})."
        )
    return " ".join(sentences)


def markdown(document: dict[str, Any], *, picture: str | None = None) -> str:
    """All that a run says, for between the markers of a page."""
    samples = [Sample(**sample) for sample in document["samples"]]
    parts = [provenance(document)]
    if picture:
        parts.append(f"![How many times as fast as the best C peer, by workload]({picture})")
    for place, title in PLACES.items():
        results = Results(samples, place=place)
        if not results.rows():
            continue
        parts += [f"### {title}", summary(results), ratio_table(results)]
        own = own_table(results)
        if own:
            parts.append(own)
        parts.append(median_table(results))
    failures = document["failures"]
    if failures:
        rounds = Counter((one["load"], one["variant"], one["place"]) for one in failures)
        lines = [
            f"* {load} on {variant} ({place}), in {count} round{'s' * (count > 1)}"
            for (load, variant, place), count in rounds.items()
        ]
        parts.append("Could not be run:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def provenance(document: dict[str, Any]) -> str:
    """When, on what, how busy."""
    machine, versions = document["machine"], document["versions"]
    peers = ("fuse2fs", "bindfs", "mergerfs", "vmfs-tools", "fio")
    known = ", ".join(f"{peer} {versions[peer]}" for peer in peers if peer in versions)
    return (
        f"{document['date']}, {machine['cpus']} x {machine['cpu']}, kernel {machine['kernel']}, "
        f"Python {machine['python']}, pyfuse3 {versions['pyfuse3']}; {known}; commit "
        f"{versions.get('commit', NOTHING)}. Load average before: {document['load_before'][0]:g} "
        "(one runnable process of others already disturbs two cores)."
    )


def document_of(
    samples: Iterable[Sample], *, failures: Sequence[dict[str, str]], about: dict[str, Any]
) -> dict[str, Any]:
    """The JSON document. `about` has date, machine, versions, options and load averages."""
    return {
        "schema": SCHEMA,
        **about,
        "failures": list(failures),
        "samples": [asdict(sample) for sample in samples],
    }


def to_json(document: dict[str, Any]) -> str:
    """One sample a line, so that a diff can be read."""
    samples = document["samples"]
    head = json.dumps({**document, "samples": []}, indent=1).removesuffix('"samples": []\n}')
    lines = ",\n".join(f"  {json.dumps(sample)}" for sample in samples)
    return f'{head}"samples": [\n{lines}\n ]\n}}\n'


def replaced(page: str, text: str, *, part: str = "bench") -> str:
    """The page with `text` between the markers of one of its parts.

    Raises:
        ValueError: the page has no such markers, or more than one pair.
    """
    begin, end = f"<!-- {part}:begin -->", f"<!-- {part}:end -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page needs one {begin} and one {end}")
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n\n{text}\n\n{end}{tail}"
