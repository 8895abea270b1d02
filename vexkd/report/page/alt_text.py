"""What one sees in a figure, in words with its numbers: for who cannot see it. It is read from the CSV beside the picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd


def words(path: Path, kind: str) -> str:
    """Of a figure of this kind (a key of `vexkd.report.page.FIGURES`); empty where the CSV is not there or unknown."""
    table = path.with_suffix(".csv")
    if kind not in _KINDS or not table.is_file():
        return ""
    frame = pd.read_csv(table, keep_default_na=False, na_values=[""])
    try:
        return _KINDS[kind](frame)
    except (KeyError, ValueError, IndexError):  # of another version of the figure: better without than wrong
        return ""


def _distillation(frame: pd.DataFrame) -> str:
    gains = frame[frame["metric"] == "NDS"].assign(gain=lambda rows: rows["distilled"] - rows["baseline"])
    least, most = gains.loc[gains["gain"].idxmin()], gains.loc[gains["gain"].idxmax()]
    span = f"from {least.gain:+.1f} points ({least.run}) to {most.gain:+.1f} ({most.run})"
    return f"{len(gains)} distilled students; NDS changes {span}."


def _blocks(frame: pd.DataFrame) -> str:
    lines = [
        f"{score} of {student}: " + ", ".join(f"{row.percent:.1f} % with {row.blocks}" for row in part.itertuples())
        for (student, score), part in frame.groupby(["student", "score"], sort=False)
    ]
    epochs = frame.drop_duplicates("run").itertuples()
    return f"{'; '.join(lines)}. Epochs to settle: {', '.join(f'{e.epochs_to_converge:.1f} with {e.blocks}' for e in epochs)}."


def _missing_sensor(frame: pd.DataFrame) -> str:
    lines = [
        f"{run}, {score}: " + ", ".join(f"{row.percent:.1f} % {_with(row.sensors)}" for row in part.itertuples())
        for (run, score), part in frame.groupby(["run", "score"], sort=False)
    ]
    return "; ".join(lines) + "."


def _with(sensors: str) -> str:
    return sensors if sensors.startswith("without") else f"with {sensors}"


def _latency(frame: pd.DataFrame) -> str:
    lines = [f"{row.run} {row.percent:.1f} % {row.score} in {row.latency_ms:.0f} ms" for row in frame.itertuples()]
    return "; ".join(lines) + "."


def _curves(frame: pd.DataFrame) -> str:
    mean = frame.groupby(["run", "seed"])["loss"].agg(["first", "last"]).mean()
    return (
        f"{frame['run'].nunique()} panels; the loss ends at {mean['last'] / mean['first']:.0%} of its start on average."
    )


def _birdseye(frame: pd.DataFrame) -> str:
    true = frame["source"] == "ground truth"
    return f"{int(true.sum())} annotated boxes and {int((~true).sum())} predicted ones."


def _camera(frame: pd.DataFrame) -> str:
    counts = frame.groupby(["run", "outcome"], sort=False).size().unstack(fill_value=0)
    names = [name for name in ("hit", "false alarm", "missed") if name in counts]
    return "; ".join(_outcomes(run, {name: row[name] for name in names}) for run, row in counts.iterrows()) + "."


def _errors(frame: pd.DataFrame) -> str:
    counts = frame.groupby("run", sort=False)[["hit", "false_alarm", "missed"]].sum()
    return (
        "; ".join(_outcomes(run, {k.replace("_", " "): n for k, n in row.items()}) for run, row in counts.iterrows())
        + "."
    )


def _outcomes(run: object, counts: dict[str, int]) -> str:
    plural = {"hit": "hits", "false alarm": "false alarms"}
    return f"{run}: " + ", ".join(f"{count} {plural.get(name, name)}" for name, count in counts.items())


def _maps(frame: pd.DataFrame) -> str:
    parts = [
        f"{name.replace('_', ' ')} " + ("nowhere" if pd.isna(iou) else f"{iou:.0f} %")
        for name, iou in zip(frame["class"], frame["iou_percent"], strict=True)
    ]
    return f"IoU on this sample: {', '.join(parts)}."


def _energy(frame: pd.DataFrame) -> str:
    parts = [
        f"{level}: " + ", ".join(f"{row.run} {row.cosine_to_teacher:.2f}" for row in part.itertuples())
        for level, part in frame.groupby("level", sort=False)
    ]
    return f"Cosine of each map to the teacher's, {'; '.join(parts)}."


def _masks(frame: pd.DataFrame) -> str:
    values = frame.set_index(["level", "region"])["mean"]
    parts = []
    for level in frame["level"].unique():
        inside, outside = values[level, "annotated objects"], values[level, "not annotated objects"]
        parts.append(f"{level}: {inside:.3f} on annotated objects, {outside:.3f} elsewhere")
    return f"Mean of the mask, {'; '.join(parts)}."


_KINDS: dict[str, Callable[[pd.DataFrame], str]] = {
    "distillation": _distillation,
    "blocks": _blocks,
    "missing-sensor": _missing_sensor,
    "latency": _latency,
    "curves": _curves,
    "birdseye": _birdseye,
    "camera": _camera,
    "errors": _errors,
    "maps": _maps,
    "energy": _energy,
    "masks": _masks,
}
