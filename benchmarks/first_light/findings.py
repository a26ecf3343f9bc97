"""What the steps found, as a person reads it: the important first, short enough to be read at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

Finding = dict
CHARACTERS = 11_000  # of the table
OPERATIONS = {"fwd": ("forward", "backward", "deterministic"), "bwd": ("backward", "deterministic")}
WRONG = ("wrong", "hang", "crash")


def hung_operations(found: Iterable[Finding]) -> list[str]:
    """Operations of which some case hung and none was right: timing them would hang too."""
    statuses = defaultdict(set)
    for finding in found:
        statuses[str(finding.get("case", "")).split(" ")[0]].add(finding.get("status"))
    hung = [op for op in OPERATIONS if "hang" in statuses[op] and "right" not in statuses[op]]
    return list(dict.fromkeys(operation for op in hung for operation in OPERATIONS[op]))


def table(found: Sequence[Finding]) -> str:
    by_step: dict[str, list[Finding]] = defaultdict(list)
    for finding in found:
        by_step[finding["step"]].append(finding)
    lines = ["==== first light ===="]
    lines += [f"{f['case']}: {f['detail']} ({f['seconds']:.0f} s)" for f in by_step.pop("steps", [])]
    for step, findings in by_step.items():
        lines += ["", f"-- {step}: {_counts(findings)}", *_environment(findings), *_worst(findings)]
        for finding in findings:
            if finding["status"] in WRONG:
                lines.append(f"{finding['status'].upper()} {finding['case']}: {_short(finding['detail'], 300)}")
        lines += [_timed(f) for f in findings if f["status"] == "right" and ("measured" in f or "ceiling" in f["case"])]
        lines += [f"{f['case']}: {_short(f['detail'], 1500)}" for f in findings if f["case"].startswith("ncu")]
        lines += _once("missing", findings) + _once("skipped", findings)
    return "\n".join(lines)[:CHARACTERS]


def _counts(findings: Sequence[Finding]) -> str:
    counts = Counter(finding["status"] for finding in findings)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _environment(findings: Sequence[Finding]) -> list[str]:
    return [", ".join(f"{name} {value}" for name, value in f["found"].items()) for f in findings if "found" in f]


def _worst(findings: Sequence[Finding]) -> list[str]:
    """Of each tensor, the largest error relative to what is allowed."""
    worst: dict[str, float] = {}
    for finding in findings:
        for name, error in (finding.get("error") or {}).items():
            ratio = float(error) / finding["allowed"][name]  # "nan" and "inf" are texts in JSON
            worst[name] = ratio if ratio != ratio else max(worst.get(name, 0.0), ratio)
    return [f"largest error, of what is allowed: {', '.join(f'{n} {r:.2f}' for n, r in worst.items())}"] * bool(worst)


def _timed(finding: Finding) -> str:
    return f"{finding['case'].removeprefix('bench ')}: {_short(finding['detail'], 200)}"


def _once(status: str, findings: Sequence[Finding]) -> list[str]:
    """One line for each reason."""
    cases = defaultdict(list)
    for finding in findings:
        if finding["status"] == status and not finding["case"].startswith("ncu"):
            cases[_short(finding["detail"], 160)].append(finding["case"])
    return [f"{status}: {len(names)} ({names[0]}{', ...' * (len(names) > 1)}): {why}" for why, names in cases.items()]


def _short(text: str, length: int) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= length else f"{text[:length]} ..."
