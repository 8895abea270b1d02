"""docs/MODELS.md: the parts of every distinct model between two markers, beside published counts; prose around them stays.

It reads plain values, as `vexkd.measure.summary.Summary.values` gives them, and needs no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.report import table_markup

BEGIN, END = "<!-- models:begin -->", "<!-- models:end -->"
_WHOLE = "whole"
_WORDS = {"parameters": "parameters", "macs": "multiply-adds"}
_UNITS = {"parameters": (1e6, "M"), "macs": (1e9, "G")}


@dataclass(frozen=True)
class Published:
    """A count of a run's part (by its path, "" for the whole) that a source gives, and why ours differs.

    Several runs share a row where their part is the same: the first that is there is shown.
    """

    runs: tuple[str, ...]
    part: str
    quantity: Literal["parameters", "macs"]
    value: float
    source: str
    why: str


_SWIN, _R50, _R101 = 28_288_354, 25_557_032, 44_549_160  # torchvision's documentation
_TORCHVISION = "torchvision's documentation"
PUBLISHED = (
    Published(
        ("fusion-conv-det",), "", "macs", 253.2e9, "BEVFusion (MIT), Table 1",
        "the sparse encoder costs what the scene's voxels ask for, here a made-up one; how the source counts is not told",
    ),
    Published(
        ("fusion-det", "fusion-conv-det"), "camera.encoder.backbone", "parameters", _SWIN, f"{_TORCHVISION}, swin_t",
        "without the classifier (769,000), with a norm for each of the three maps handed on (2,688): equal",
    ),
    Published(
        ("fusion-det", "fusion-conv-det"), "camera.encoder.backbone", "macs", 6 * 4.49e9 * 256 * 704 / 224**2,
        f"{_TORCHVISION}, swin_t: 4.49 G at 224x224, times the pixels of six 256x704",
        "attention pads the maps to whole windows of 7, the last from 8x22 to 14x28; without that it is 96.76 G: equal",
    ),
    Published(
        ("bevdet-det",), "camera.encoder.backbone", "parameters", _R50, f"{_TORCHVISION}, resnet50",
        "without the classifier (2,049,000): equal",
    ),
    Published(
        ("bevdet-det",), "camera.encoder.backbone", "macs", 6 * 4.09e9 * 256 * 704 / 224**2,
        f"{_TORCHVISION}, resnet50: 4.09 G at 224x224, times the pixels of six 256x704",
        "without the classifier, and the source rounds: equal",
    ),
    Published(
        ("bevdet-det",), "", "macs", 215.3e9, "BEVDet, abstract: BEVDet-Tiny",
        "its backbone is Swin-T, ours is R50; its BEV map has 128x128 cells, ours 180x180",
    ),
    Published(
        ("bevformer-det",), "camera.encoder.backbone", "parameters", _R101, f"{_TORCHVISION}, resnet101",
        "without the classifier (2,049,000) and the norms, which are frozen (105,344); with the offsets of the deformable "
        "convolutions (1,804,734): equal",
    ),
    Published(
        ("bevformer-det",), "camera.encoder.backbone", "macs", 6 * 7.8e9 * 928 * 1600 / 224**2,
        f"{_TORCHVISION}, resnet101: 7.80 G at 224x224, times the pixels of six 928x1600",
        "caffe's style strides a convolution earlier (-41.1 G); offsets and sampling of the deformable ones (+60.9 G): equal",
    ),
    Published(
        ("bevformer-det",), "", "parameters", 68.7e6, "BEVFormer: BEVFormer-S",
        "200x200 queries with their positions there, 180x180 here (1.95 M); layers for the vehicle's motion there (0.04 M); "
        "the frozen stem and first stage only here (0.22 M), so the source counts what learns: then 68.71 M, equal",
    ),
    Published(
        ("bevformer-det",), "", "macs", 1303.5e9, "BEVFormer: BEVFormer-S",
        "how the source counts is not told; without the products of the deformable convolutions (534 G) and all sampling "
        "(17 G), which common counters leave out, and with its 200x200 queries (+36 G) it would be 1284 G here: -1.5 %",
    ),
)  # fmt: skip


def update(page: Path, summaries: list[dict[str, Any]], *, published: tuple[Published, ...] = PUBLISHED) -> None:
    """Write the models between the markers of a page. Raises InputError where a marker is missing.

    A summary holds what `Summary.values` gives, `runs` (all that deploy this model, its own first) and `teaching`
    ({distilled run: parameters that exist in training alone}).
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# Models\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{page}: it has no lines '{BEGIN}' and '{END}' to write the models between; add them.")
    provenance.write_text(
        page, f"{before}{BEGIN}\n\n{section(summaries, published)}\n{END}{after}", only_if_changed=True
    )


def section(summaries: list[dict[str, Any]], published: tuple[Published, ...] = PUBLISHED) -> str:
    """What stands between the markers."""
    parts = [_overview(summaries)]
    compared = _compared(summaries, published)
    parts += ["## Beside published counts", compared] if compared else []
    parts.append("## Parts")
    for summary in summaries:
        parts += [f"### {summary['run']}", table(summary)]
    return "\n\n".join(parts) + "\n"


def table(summary: dict[str, Any]) -> str:
    """The parts of one model and its whole, in Markdown."""
    head = ["Part", "Parameters", "GMACs", "GFLOPs", "Activations (MB)", "Output", "Calls"]
    whole = {**summary, "name": _WHOLE, "outputs": [], "calls": 1}
    rows = [
        [
            part["name"],
            f"{part['parameters']:,}",
            _giga(part["macs"]),
            _giga(2 * part["macs"]),
            f"{part['activations'] / 1e6:.1f}",
            shapes(part["outputs"]),
            str(part["calls"] or ""),
        ]
        for part in [*summary["parts"], whole]
    ]
    others = f" Deployed by {', '.join(summary['runs'][1:])} too." if len(summary["runs"]) > 1 else ""
    return _markdown(head, rows, f"One sample: {summary['sample']}.{others}")


def shapes(outputs: list[Any]) -> str:
    """Shapes of a part's outputs, with how many of each; of many kinds the first three."""
    words = [("" if count == 1 else f"{count} of ") + "x".join(map(str, shape)) for count, shape in outputs]
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def parameters(text: str) -> dict[str, dict[str, int]]:
    """The parameters of every part in a page that `update` wrote: {run: {part: number}}, the whole by the path ""."""
    counts: dict[str, dict[str, int]] = {}
    between = text.partition(BEGIN)[2].partition(END)[0].partition("## Parts")[2]
    for block in re.split(r"^### ", between, flags=re.MULTILINE)[1:]:
        run = block.split("\n", 1)[0].strip()
        cells = re.findall(r"^\| *([^|]+?) *\| *([\d,]+) *\|", block, flags=re.MULTILINE)
        counts[run] = {"" if name == _WHOLE else name: int(count.replace(",", "")) for name, count in cells}
    return counts


def _giga(count: float) -> str:
    """In units of 10^9; empty where nothing was counted."""
    if not count:
        return ""
    return f"{count / 1e9:.1f}" if count >= 1e8 else f"{count / 1e9:.3f}"


def _overview(summaries: list[dict[str, Any]]) -> str:
    head = ["Model", "Runs", "Parameters (M)", "GMACs", "GFLOPs", "Activations (MB)", "In training alone (M)"]
    rows = []
    for summary in summaries:
        teaching = sorted({f"{count / 1e6:.2f}" for count in summary["teaching"].values()}, key=float)
        cells = [summary["run"], str(len(summary["runs"])), f"{summary['parameters'] / 1e6:.2f}"]
        cells += [_giga(summary["macs"]), _giga(summary["flops"]), f"{summary['activations'] / 1e6:.0f}"]
        rows.append([*cells, " to ".join(dict.fromkeys([*teaching[:1], *teaching[-1:]]))])
    note = "Runs: how many deploy this model. In training alone: what teaches the distilled ones, masks and adapters."
    return _markdown(head, rows, note)


def _compared(summaries: list[dict[str, Any]], published: tuple[Published, ...]) -> str:
    """Each published count whose run is there, beside ours; empty where there is none."""
    head = ["Model", "Part", "Count", "Here", "Published", "Difference", "Source", "Why they differ"]
    by_run = {summary["run"]: summary for summary in summaries}
    rows = []
    for row in published:
        run = next((name for name in row.runs if name in by_run), None)
        if run is None:
            continue
        part = _part(by_run[run], row.part)
        if part is None or not part[row.quantity]:
            continue
        scale, unit = _UNITS[row.quantity]
        counted = part[row.quantity]
        cells = [
            f"{counted / scale:.2f} {unit}",
            f"{row.value / scale:.2f} {unit}",
            f"{100 * (counted / row.value - 1):+.1f} %",
        ]
        rows.append([run, row.part or _WHOLE, _WORDS[row.quantity], *cells, row.source, row.why])
    note = "Published GFLOPs of this field are taken for giga-multiply-adds."
    return _markdown(head, rows, note) if rows else ""


def _part(summary: dict[str, Any], name: str) -> dict[str, Any] | None:
    if not name:
        return summary
    return next((part for part in summary["parts"] if part["name"] == name), None)


def _markdown(head: list[str], rows: list[list[str]], note: str) -> str:
    """A table with a note below."""
    return f"{table_markup.markdown(head, rows)}\n\n{note}"
