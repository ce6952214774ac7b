"""The report as one HTML page that needs nothing else: text, style and drawings are inside, in light and in dark."""

import io
import re
from html import escape

import matplotlib

from . import paper
from .curves import FAINT, INK
from .figures import COLORS, FAMILIES
from .markdown import LEGEND, NO_RECIPE, heading
from .results import of_sessions
from .summary import state

DARK = {  # the colours of the drawings on a dark page
    INK: "#e4e4e0", FAINT: "#3a3c40", "#0072B2": "#4ba3e3", "#D55E00": "#ff8a4c", "#009E73": "#3fc59c", "#CC79A7": "#e39ac3",
    "#E69F00": "#f0b73f", "#56B4E9": "#7cc8f4", "#999999": "#a8a8a8",
}  # fmt: skip
assert {*COLORS, *FAMILIES.values()} <= set(DARK)

TITLE = "Compact Transformers: the paper beside our runs"
STYLE = """
:root { color-scheme: light dark; --page: #fdfdfb; --text: #1d1f21; --soft: #66696d; --line: #dedfda;
  --head: #f2f2ee; --ours: #b34700; --link: #00609a; }
@media (prefers-color-scheme: dark) { :root { --page: #17181a; --text: #e4e4e0; --soft: #9b9ea3; --line: #35373b;
  --head: #202226; --ours: #ff9d66; --link: #6cb8ee; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 66rem; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0; display: inline; }
p { max-width: 44rem; margin: .5rem 0 1rem; }
a { color: var(--link); text-underline-offset: .15em; }
.soft { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .35rem .5rem; margin: 1.2rem 0 2rem; padding: 0; }
nav a { border: 1px solid var(--line); border-radius: 1rem; padding: .2rem .75rem; text-decoration: none; font-size: .9rem; }
nav a span { color: var(--soft); font-variant-numeric: tabular-nums; margin-left: .3rem; }
section, details { margin: 2.2rem 0; }
details { border-top: 1px solid var(--line); padding-top: 1rem; margin: 1rem 0; }
summary { cursor: pointer; }
summary .soft { margin-left: .5rem; font-size: .95rem; }
figure { margin: 1.5rem 0 2rem; }
.drawings { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem 2rem; }
.drawings div { overflow-x: auto; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .4rem; }
svg text { font-family: inherit !important; }
.wide { overflow-x: auto; margin: .8rem 0 0; }
table { border-collapse: separate; border-spacing: 0; font-size: .9375rem; line-height: 1.375rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3125rem .7rem; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; background: var(--head); }
thead tr + tr th { font-weight: 400; color: var(--soft); font-size: .86rem; padding-top: 0; }
thead th.group { text-align: center; padding-bottom: .05rem; border-bottom: 0; }
tr:not(.kinds) > th:first-child { text-align: left; position: sticky; left: 0; background: var(--page); font-weight: 400; }
thead tr:first-child > th:first-child { background: var(--head); font-weight: 600; }
.left { text-align: left; } td.first, th.first { border-left: 1px solid var(--line); }
td.ours { font-weight: 650; color: var(--ours); }
.left small { white-space: normal; min-width: 16rem; }
small { display: block; font-weight: 400; color: var(--soft); font-size: .8125rem; line-height: 1.125rem; }
td.none { color: var(--soft); }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
@media (max-width: 40rem) { .size { display: none; }
  body { padding: 1.5rem 1rem 4rem; } h1 { font-size: 1.6rem; } th, td { padding: .3125rem .5rem; } }
"""


def render(tables, runs, drawings):
    """The page. drawings: {caption: [(title, matplotlib figure), ...]}."""
    run, runnable = sum(table.run for table in tables), sum(table.runnable for table in tables)
    legend = re.sub("[*](.+?)[*]", "<em>\\g<1></em>", escape(LEGEND))
    links = [f'<a href="#{t.key}">{paper.title(t.key)}<span>{t.run}/{t.runnable}</span></a>' for t in tables]
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{TITLE}</title>\n<style>{STYLE}{_colors()}</style>\n</head>\n<body>\n<header>\n<h1>{TITLE}</h1>",
        f'<p class="soft">{run} of {runnable} numbers with a recipe were run here, in {len(runs)} runs.</p>',
        f"<p>{legend} A small number below ours is its difference to the paper.</p>\n</header>",
        '<nav aria-label="Tables">', *links, '<a href="#runs">Runs</a>\n</nav>\n<main>',
    ]  # fmt: skip
    for caption, pictures in drawings.items():
        inside = "".join(f"<div>{svg(figure, title)}</div>" for title, figure in pictures)
        parts.append(f'<figure><div class="drawings">{inside}</div><figcaption>{escape(caption)}</figcaption></figure>')
    parts += [_section(table) for table in sorted(tables, key=lambda table: not table.run)]
    parts += ['<section id="runs"><h2>Runs</h2>', _runs(runs), "</section>\n</main>\n</body>\n</html>\n"]
    return "\n".join(parts)


def _section(table):
    """A table; folded up when nothing of it was run."""
    note = f"{table.run} of {table.runnable} run" if table.run else f"not run ({table.runnable} numbers with a recipe)"
    head = f'<h2>{escape(heading(table))}</h2><span class="soft"> {note}</span>'
    return f'<details id="{table.key}"{" open" * bool(table.run)}><summary>{head}</summary>\n{_grid(table)}</details>'


def _grid(table):
    head = ["model", *(["param., M", "MACs, G"] if table.sizes else [])]
    top = "".join(f'<th rowspan="2" scope="col"{_class("size" if i else "")}>{name}</th>' for i, name in enumerate(head))
    spans = f'class="group first" colspan="{len(table.kinds)}" scope="colgroup"'
    top += "".join(f"<th {spans}>{escape(paper.DATA_SETS.get(name, name))}</th>" for name in table.datasets)
    kinds = "".join(f'<th scope="col"{_class("" if i else "first")}>{kind}</th>' for i, kind in enumerate(table.kinds))
    kinds *= len(table.datasets)
    lines = [f'<div class="wide"><table>\n<thead><tr>{top}</tr><tr class="kinds">{kinds}</tr></thead>\n<tbody>']
    for name, cells in table.rows.items():
        sizes = (
            "".join(f'<td class="size">{escape(size)}</td>' for size in table.sizes.get(name, ("", ""))) if table.sizes else ""
        )
        places = "".join(_places(cells.get(dataset), table.kinds) for dataset in table.datasets)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{sizes}{places}</tr>')
    return "\n".join([*lines, "</tbody>\n</table></div>"])


def _places(cell, kinds):
    if cell is None:
        texts, ours = ["", ""], ""
    elif cell.ours is None:
        texts, ours = [cell.printed, "not run" if cell.recipe else NO_RECIPE], "none"
    else:
        below = ", ".join(filter(None, (cell.time, cell.remark, cell.difference)))
        texts, ours = [cell.printed, cell.value + (f"<small>{escape(below)}</small>" if below else "")], "ours"
    classes = ["", ours][-len(kinds) :]
    classes[0] = f"first {classes[0]}".strip()
    pairs = zip(classes, texts[-len(kinds) :], strict=True)
    return "".join(f"<td{_class(name)}>{text}</td>" for name, text in pairs)


def _class(name):
    return f' class="{name}"' if name else ""


def _runs(runs):
    if not runs:
        return "<p>Nothing was run yet: see <code>cct reproduce</code>.</p>"
    columns = ["recipe", "seed", "state", "last", "best", "average", "minutes"]
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    head += "".join(f'<th scope="col" class="left">{name}</th>' for name in ("machine", "versions", "commit", "command"))
    lines = [f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>']
    for run in runs:
        ema = f"{run['ema']:.2f}" if "ema" in run else ""
        best = f"{run['best']:.2f}<small>epoch {run['best_epoch']}</small>"
        numbers = [str(run["seed"]), state(run), f"{run['last']:.2f}", best, ema, f"{run['seconds'] / 60:.1f}"]
        texts = [escape(of_sessions(run["sessions"], key)) for key in ("machine", "versions", "commit")]
        texts[-1] += f"<small>{escape(run['note'])}</small>" if "note" in run else ""
        texts.append(f"<code>{escape(run['command'])}</code>")
        changes = f"<small>{escape(run['changes'])}</small>" if run["changes"] else ""
        cells = "".join(f"<td>{number}</td>" for number in numbers) + "".join(f'<td class="left">{text}</td>' for text in texts)
        lines.append(f'<tr><th scope="row">{escape(run["recipe"])}{changes}</th>{cells}</tr>')
    return "\n".join([*lines, "</table></div>"])


def svg(figure, title):
    """The figure as an inline SVG whose text is text and whose colours follow the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z][\w.]*_\d+"', "", text)  # names of groups, which are not unique in a page of several
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1)
    for color in DARK:
        text = re.sub(color, f"var({_name(color)})", text, flags=re.IGNORECASE)
    width = 6.2 * figure.get_size_inches()[0]  # rem
    style = f"max-width: {width:.1f}rem" + ("; min-width: 32rem" if width > 40 else "")  # else a phone shows it too small
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}" style="{style}"', 1)


def _name(color):
    return f"--d{color[1:].lower()}"


def _colors():
    light = " ".join(f"{_name(color)}: {color};" for color in DARK)
    dark = " ".join(f"{_name(color)}: {value};" for color, value in DARK.items())
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
