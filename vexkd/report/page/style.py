"""The look of report.html: readable on a desk, on a phone and on paper, by day and by night."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --panel: #f5f6f8; --ink: #1d2125; --quiet: #565e67; --line: #d5d9de;
  --link: #005a9c; --accent: #0072b2; --mark: #9a4a00;
  --text: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif;
  --code: ui-monospace, "SF Mono", Menlo, Consolas, "Noto Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15181c; --panel: #1f242a; --ink: #e6e9ec; --quiet: #a5aeb8; --line: #39414a;
    --link: #7cc0f5; --accent: #56b4e9; --mark: #f0b060;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--ground); color: var(--ink); font: 1rem/1.55 var(--text); overflow-wrap: anywhere; }
a { color: var(--link); text-underline-offset: 0.15em; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 2px; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: 1rem; z-index: 9; padding: 0.5rem 1rem; background: var(--ground); }
header, main, footer { padding: 0 1.25rem; }
header { padding-top: 1.5rem; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 3rem 0 1rem; padding-bottom: 0.3rem; border-bottom: 2px solid var(--line); font-size: 1.35rem; }
h3 { margin: 2.2rem 0 0.6rem; font-size: 1.1rem; }
h4 { margin: 1.5rem 0 0.4rem; font-size: 0.95rem; color: var(--quiet); }
p { max-width: 75ch; }
.note { color: var(--quiet); font-size: 0.88rem; margin: 0.3rem 0; max-width: 95ch; }
.lead { color: var(--quiet); margin: 0.4rem 0 0; }
nav { padding: 0.75rem 1.25rem; font-size: 0.92rem; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav > ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; }
nav ul ul { display: none; }
nav a { display: inline-block; padding: 0.15rem 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; max-width: max-content; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
caption { text-align: left; padding: 0.5rem 0.7rem; color: var(--quiet); }
th, td { padding: 0.35rem 0.7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--panel); vertical-align: bottom; font-weight: 600; }
tbody th { font-weight: 400; }
th.word, td.word { text-align: left; }
tbody tr:hover > * { background: var(--panel); }
.scroll th:first-child { position: sticky; left: 0; background: var(--ground); border-right: 1px solid var(--line); }
.scroll thead th:first-child { background: var(--panel); }
@media (max-width: 40rem) {
  .scroll th:first-child { white-space: normal; min-width: 7.5rem; max-width: 9.5rem; overflow-wrap: anywhere; }
}
figure { margin: 1.2rem 0 2rem; }
figure img { display: block; max-width: 100%; height: auto; padding: 0.5rem; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
.pan { overflow-x: auto; }
@media (max-width: 40rem) {
  .pan img, .pan svg { width: 46rem; max-width: none; }
  .pan img.vector { width: auto; }
}
.up { margin: 0.2rem 0 0; font-size: 0.85rem; }
tr:target > * { background: var(--panel); }
figcaption { margin-top: 0.5rem; color: var(--quiet); font-size: 0.88rem; max-width: 75ch; }
.run + .run { border-top: 1px solid var(--line); margin-top: 2.5rem; }
.run h3 code { font-size: 1.1rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: 0.25rem 1rem; margin: 0.6rem 0; font-size: 0.92rem; }
dt { color: var(--quiet); }
dd { margin: 0; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 0.5rem; } }
details { margin: 0.6rem 0; border: 1px solid var(--line); border-radius: 6px; background: var(--panel); max-width: 100%; }
summary { padding: 0.45rem 0.8rem; cursor: pointer; }
details > :not(summary) { margin: 0; padding: 0 0.8rem 0.6rem; }
pre { overflow-x: auto; font: 0.8rem/1.5 var(--code); white-space: pre-wrap; overflow-wrap: anywhere; max-height: 32rem; }
code { font-family: var(--code); font-size: 0.9em; }
.chart { width: 100%; max-width: 40rem; height: auto; color: var(--quiet); }
.chart text { font: 11px var(--text); fill: currentColor; }
.chart .axis { stroke: var(--line); }
.chart path { fill: none; stroke-width: 1.6; }
.mark { color: var(--mark); font-weight: 600; }
footer { margin-top: 4rem; padding-bottom: 2rem; color: var(--quiet); font-size: 0.85rem; }
@media (min-width: 75rem) {
  body { display: grid; grid-template-columns: 17rem minmax(0, 1fr); grid-template-rows: auto 1fr auto; }
  header, main, footer { grid-column: 2; padding-right: 2.5rem; }
  nav { grid-column: 1; grid-row: 1 / span 3; position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 1.5rem 1rem;
    background: var(--panel); border-right: 1px solid var(--line); }
  nav > ul { display: block; }
  nav > ul > li { margin-bottom: 0.8rem; font-weight: 600; }
  nav ul ul { display: block; font-weight: 400; margin: 0.1rem 0 0 0.7rem; }
}
@media print {
  :root { --ground: #fff; --panel: #fff; --ink: #000; --quiet: #333; --line: #bbb; --link: #000; }
  nav, .skip, details { display: none; }
  body { display: block; font-size: 10pt; }
  table { font-size: 7.5pt; }
  th, td { padding: 1pt 3pt; white-space: normal; }
  .scroll { overflow: visible; max-width: none; border: 0; }
  .scroll th:first-child { position: static; }
  figure, tr, .run > dl { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
}
"""
