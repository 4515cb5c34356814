# SPDX-License-Identifier: Apache-2.0
"""The style of report.html: light and dark by the reader's setting, cards instead of tables on a phone.

Charts are drawn 640 units wide. On a phone they shrink to half of that, so their letters grow and every second tick goes.
"""

from __future__ import annotations

CSS = """
:root{--bg:#fbfbfa;--card:#fff;--ink:#1c1e21;--soft:#5c636b;--line:#e1e4e8;--good:#1a7f37;--bad:#c4232f;--open:#6b7280;
--s0:#2f6fde;--s1:#e08a1e;--s2:#1f9d8a;--s3:#a24fd0;--s4:#8a939e}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--ink:#e6e8ea;--soft:#9aa3ac;--line:#2e343a;
--good:#3fb950;--bad:#ff6b6b;--open:#9aa3ac;--s0:#6ea3ff;--s1:#f0a848;--s2:#4cc9b4;--s3:#c58af0;--s4:#78828d}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.15rem;margin:0 0 .6rem}h3{font-size:1rem;margin:1rem 0 .3rem}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem;margin:1rem 0}
p{margin:.3rem 0;overflow-wrap:anywhere}.soft,figcaption{color:var(--soft);font-size:.9rem}
code,pre{font:.85rem/1.45 ui-monospace,monospace;overflow-wrap:anywhere;white-space:pre-wrap}
pre{background:var(--bg);border:1px solid var(--line);border-radius:6px;padding:.6rem;margin:.4rem 0}
.mark{display:inline-block;border-radius:99px;padding:0 .6rem;font-size:.85rem;font-weight:600;white-space:nowrap;
border:1.5px solid currentColor}
.passed{color:var(--good)}.failed{color:var(--bad)}.not{color:var(--open)}
h1 .mark{font-size:1.1rem;vertical-align:middle}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th{text-align:left;color:var(--soft);font-weight:500}
td,th{padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td{overflow-wrap:anywhere}
td:first-child{white-space:nowrap}tr:last-child td{border-bottom:0}td:last-child,th:last-child{padding-right:0}
td.number{white-space:nowrap;font-variant-numeric:tabular-nums}
.ladder td:nth-child(2){min-width:8rem}.facts td:first-child{width:11rem;color:var(--soft)}
svg{width:100%;height:auto;display:block}svg.small{width:8rem}svg text{fill:var(--soft);font-size:12px}
.grid{stroke:var(--line)}line.bar{stroke-width:4;stroke-linecap:round}
.s0{fill:var(--s0);stroke:var(--s0)}.s1{fill:var(--s1);stroke:var(--s1)}.s2{fill:var(--s2);stroke:var(--s2)}
.s3{fill:var(--s3);stroke:var(--s3)}.s4{fill:var(--s4);stroke:var(--s4)}rect,circle{stroke:none}
.legend{font-size:.85rem;color:var(--soft)}.legend span{margin-right:1rem;white-space:nowrap}
.legend i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}
i.s0{background:var(--s0)}i.s1{background:var(--s1)}i.s2{background:var(--s2)}i.s3{background:var(--s3)}
i.s4{background:var(--s4)}figure{margin:0 0 1rem}figure:last-child{margin:0}
details summary{cursor:pointer;color:var(--soft)}
@media(max-width:40rem){main{padding:.6rem}section{padding:.8rem}svg text{font-size:22px}svg text.minor{display:none}
.plain thead,.ladder thead,.facts thead{display:none}
.plain,.ladder,.plain tbody,.ladder tbody,.plain tr,.ladder tr,.plain td,.ladder td{display:block}
.plain tr,.ladder tr{border-bottom:1px solid var(--line);padding:.5rem 0}tr:last-child{border-bottom:0}
.plain td,.ladder td{border:0;padding:.1rem 0;white-space:normal}
.plain td[data-k]:not([data-k=""])::before{content:attr(data-k) " ";color:var(--soft);font-size:.8rem;margin-right:.4rem}
.plain td[data-k=""]{font-weight:600}
.ladder td:nth-child(-n+3){display:inline;padding-right:.5rem}.ladder td:nth-child(1){color:var(--soft)}
.ladder td:nth-child(2){font-weight:600}.facts td:first-child{width:38%;white-space:normal}}
@media print{section{break-inside:avoid}}
"""
