"""The proof as a page: what composes with what, and every layout with its worst tensor."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import Environment

from armillary.verify.matrix import WRONG, refusals

if TYPE_CHECKING:
    from armillary.verify.matrix import Rows
    from armillary.verify.proof import Proof

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>armillary verify</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b2330; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0 2rem; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid #dde3ea;
         vertical-align: top; }
td.equal { color: #17683a; } td.wrong, td.failed, p.wrong { color: #b3261e; font-weight: 600; }
a { color: inherit; } td.number { white-space: nowrap; } td.refused { color: #6b7482; }
pre { margin: 0; white-space: pre-wrap; font-size: 13px; }
@media (prefers-color-scheme: dark) { body { background: #11161d; color: #dfe6ee; }
th, td { border-color: #2b3542; } td.equal { color: #67c88b; }
td.wrong, td.failed, p.wrong { color: #ff8a80; } }
</style></head><body>
<h1>The parallel program against the serial one</h1>
<p>{{ counts.equal }} layouts equal, {{ counts.wrong }} wrong, {{ counts.refused }} refused.
In float64, through the optimiser step that training runs: losses, gradient norms, every gradient,
parameter and buffer; equal is a relative difference of at most {{ tolerance }}. On local ranks of
the CPU by gloo, with {% for name, version in versions.items() %}{{ name }} {{ version }}
{%- if not loop.last %}, {% endif %}{% endfor %}.</p>
{% for proof, refused in proofs if not proof.holds %}
<p class="wrong">Not equal: <a href="#{{ proof.recipe }}">{{ proof.recipe }}</a> on
{% for f in proof.findings if f.state in wrong_states %}{{ f.layout }}
{%- if not loop.last %}; {% endif %}{% endfor %}</p>{% endfor %}
<h2>What composes</h2>
{% for rows in composition %}<table>{% for row in rows %}<tr>{% for cell in row %}
{% if loop.first or row is sameas rows[0] %}<th>{{ cell }}</th>
{% else %}<td{% if wrong_word in cell %} class="wrong"{% endif %}>{{ cell }}</td>
{% endif %}{% endfor %}</tr>{% endfor %}</table>{% endfor %}
{% for proof, refused in proofs %}
<h2 id="{{ proof.recipe }}">{{ proof.recipe }}</h2>
<p>{{ "{:,}".format(proof.num_parameters) }} parameters: {{ proof.size }}. {{ proof.num_steps }}
optimiser steps, the last on fewer samples. Took {{ "%.0f" % proof.taken_s }} s.</p>
<table><tr><th>layout</th><th>ranks</th><th></th><th>worst difference</th><th></th></tr>
{% for f in proof.findings if f.state != "refused" %}<tr><td>{{ f.layout }}</td>
<td>{{ f.num_ranks }}</td><td class="{{ f.state }}">{{ f.state }}</td>
<td class="number">{% if f.num_tensors %}{{ "%.1e" % f.worst }} of {{ f.num_tensors }} tensors
{% endif %}</td>
<td>{% if f.suspects %}suspected: {{ f.suspects | join(", ") }}{% endif %}
{% for d in f.differences if not d.difference <= tolerance %}
<br>{{ d.kind }} {{ d.name }}: {{ "%.1e" % d.difference }}, rank {{ d.rank }};
{{ d.pattern }}{% endfor %}{% if f.reason %}<pre>{{ f.reason }}</pre>{% endif %}
</td></tr>{% endfor %}</table>
{% if refused %}<table><tr><th>refused, before a rank starts</th><th>layouts</th></tr>
{% for reason, layouts in refused %}<tr><td><pre>{{ reason }}</pre></td>
<td class="refused">{{ layouts | join("; ") }}</td></tr>{% endfor %}</table>{% endif %}
{% endfor %}</body></html>
"""


STATES = ("wrong", "failed")


def render(proofs: "Sequence[Proof]", composition: Sequence["Rows"]) -> str:
    """The page of `proofs`, of which there are some, with the tables of `composition`;
    self-contained. What is wrong comes first.
    """
    plain: list[dict[str, Any]] = [proof.to_dict() for proof in proofs]
    for proof in plain:
        proof["findings"].sort(key=lambda finding: finding["state"] not in STATES)
    states = [finding["state"] for proof in plain for finding in proof["findings"]]
    counts = {
        "equal": states.count("equal"),
        "wrong": sum(states.count(state) for state in STATES),
        "refused": states.count("refused"),
    }
    page = Environment(autoescape=True).from_string(PAGE)
    told = [(d, refusals(proof.findings)) for d, proof in zip(plain, proofs, strict=True)]
    return page.render(
        proofs=told,
        composition=composition,
        counts=counts,
        tolerance=plain[0]["tolerance"],
        versions=plain[0]["versions"],
        wrong_states=STATES,
        wrong_word=WRONG,
    )
