r"""Pairs of answer and reference that graders get wrong, with verdicts decided by hand.

One pair a line: answer, reference, and `=` or `!`, separated by ` ~ `. The reason of a verdict is arithmetic that
fits in one's head, or the rule of docs/results/verify.md that the heading names.
"""

from __future__ import annotations

from typing import NamedTuple


class Hard(NamedTuple):
    """One pair with its verdict and the heading that it stands under."""

    answer: str
    reference: str
    equal: bool
    heading: str


PAIRS = r"""
# Unicode
½ ~ 1/2 ~ =
¾ ~ 0.75 ~ =
2½ ~ 2.5 ~ =
½ ~ 2 ~ !
√2 ~ \sqrt{2} ~ =
√2 ~ 2 ~ !
10 - 2√5 ~ 10-2\sqrt{5} ~ =
10 - 2√5 ~ 8\sqrt{5} ~ !
√(x+1) ~ \sqrt{x+1} ~ =
x²+1 ~ x^2+1 ~ =
x²+1 ~ x2+1 ~ !
x³ ~ x^{2} ~ !
10⁻³ ~ 0.001 ~ =
６ ~ 6 ~ =
١٢ ~ 12 ~ =
٣ ~ 4 ~ !
–5 ~ -5 ~ =
−5 ~ -5 ~ =
−5 ~ 5 ~ !
3×10⁸ ~ 300000000 ~ =
6÷2 ~ 3 ~ =
2·3 ~ 6 ~ =
x≤3 ~ x \le 3 ~ =
x≤3 ~ x < 3 ~ !
2π ~ 2\pi ~ =
π/2 ~ \frac{\pi}{2} ~ =
(−∞, 3) ~ (-\infty,3) ~ =
90° ~ 90 ~ =
5​ ~ 5 ~ =
5。 ~ 5 ~ =
１／２ ~ 0.5 ~ =
# Currency
€18 ~ 18 ~ =
18 € ~ 18 ~ =
£18 ~ 18 ~ =
¥1,800 ~ 1800 ~ =
$18 ~ 18 ~ =
\$18.50 ~ 18.5 ~ =
USD 18 ~ 18 ~ =
18 dollars ~ \$18 ~ =
€18 ~ £18 ~ !
€18 ~ 81 ~ !
18 dollars ~ 18 cents ~ !
# Floats
1e16 ~ 10000000000000000 ~ =
1e+16 ~ 10^{16} ~ =
1e16 ~ 10000000000000100 ~ !
1e-07 ~ 0.0000001 ~ =
1e-07 ~ 1e-08 ~ !
2.5e3 ~ 2500 ~ =
2.5e3 ~ 2.5 ~ !
1026.0 ~ 1026 ~ =
0.30000000000000004 ~ 0.3 ~ =
0.30000000000000004 ~ 3/10 ~ =
123456789.0 ~ 123456788 ~ !
1.5e-07 ~ 1.5 \times 10^{-7} ~ =
1e3 ~ 1000 ~ =
# Small and huge values
0.0000003 ~ 0.0000001 ~ !
0.0000003 ~ 3 \times 10^{-7} ~ =
1/2^64 ~ 1/2^65 ~ !
\frac{1}{2^{64}} ~ 2^{-64} ~ =
1/2006! ~ 1/2004! ~ !
\frac{1}{7!} ~ \frac{1}{5040} ~ =
\frac{1}{30!} ~ \frac{1}{31!} ~ !
2^{100} ~ 2^{100}+1 ~ !
10^{20}+1 ~ 10^{20} ~ !
100000000000000000001 ~ 100000000000000000000 ~ !
\frac{10^{20}+1}{10^{20}} ~ 1 ~ !
0.333333 ~ 1/3 ~ =
0.3333 ~ 1/3 ~ !
0.33 ~ \frac13 ~ !
3.14159 ~ \pi ~ =
3.14 ~ \pi ~ !
1.414214 ~ \sqrt{2} ~ =
1000000.5 ~ 1000000 ~ !
# Thousands, tuples, intervals, sets
(1,100) ~ (1, 100) ~ =
(1,100) ~ 1100 ~ !
(1,100) ~ [1,100] ~ !
[1,100] ~ [1, 100] ~ =
[1,100] ~ (1,100) ~ !
[1,100] ~ 1100 ~ !
[1,100) ~ [1, 100) ~ =
[1,100) ~ (1,100] ~ !
(1,234,567) ~ (1, 234, 567) ~ =
(1,234,567) ~ 1234567 ~ !
1,234,567 ~ 1234567 ~ =
1,234 ~ 1234 ~ =
1{,}234 ~ 1234 ~ =
1\,234 ~ 1234 ~ =
1,\!234 ~ 1234 ~ =
1,234.5 ~ 1234.5 ~ =
\{1,100\} ~ \{100, 1\} ~ =
\{1,100\} ~ 1100 ~ !
{1,100} ~ \{1, 100\} ~ =
\{1,2\} ~ \{1,2,2\} ~ =
\{1,2\} ~ \{1,3\} ~ !
(2,1) ~ (1,2) ~ !
(1,200), (3,400) ~ (3, 400), (1, 200) ~ =
(0,500) ~ (0, 500) ~ =
x = 1,234 ~ 1234 ~ =
1,234, 5,678 ~ 1234, 5678 ~ =
(1{,}000, 2) ~ (1000, 2) ~ =
# Units
36\pi\text{ cm}^3 ~ 36\pi ~ =
36\pi\text{ cm}^3 ~ 35\pi ~ !
25\ \text{m}^2 ~ 25 ~ =
25\ \text{m}^2 ~ 25^2 ~ !
5 \text{ N} ~ 5 ~ =
5 N ~ 5 ~ =
10 \text{ m/s}^2 ~ 10 ~ =
10 m/s^2 ~ 10 ~ =
\frac{1}{2}\text{ cm} ~ 0.5 ~ =
2\sqrt{3} \text{ in} ~ 2\sqrt{3} ~ =
5 \text{ cm} ~ 5 \text{ m} ~ !
5 cm ~ 5 centimeters ~ =
5 \text{ cm}^2 ~ 5 \text{ cm}^3 ~ !
12 square feet ~ 12 ~ =
12 \text{ sq. ft} ~ 12 \text{ ft}^2 ~ =
60 mph ~ 60 miles per hour ~ =
5 apples ~ 5 ~ =
5 apples ~ 6 apples ~ !
12 hours ~ 12 ~ =
3.5 hours ~ \frac72 ~ =
5 million ~ 5000000 ~ =
5 \text{ million} ~ 5 ~ !
3x ~ 3 ~ !
5m ~ 5n ~ !
x = 7 \text{ cm} ~ 7 ~ =
90^\circ ~ 90^{\circ} ~ =
90^\circ ~ 80 ~ !
# Lists of solutions
x=5, x=7 ~ 5, 7 ~ =
x=5, x=7 ~ 7, 5 ~ =
x=5, x=7 ~ 5 ~ !
x=5 or x=7 ~ 5, 7 ~ =
x = 5 \text{ or } x = 7 ~ x = 7, 5 ~ =
x = 2, x = 1 ~ x=1, x=2 ~ =
x = 2, x = 1 ~ x=1, x=3 ~ !
x = 3, y = 4 ~ (3,4) ~ =
x = 3, y = 4 ~ (4,3) ~ !
x = 3, y = 4 ~ y = 4, x = 3 ~ =
x = 3, y = 4 ~ x = 4, y = 3 ~ !
(x,y) = (3,4) ~ (3, 4) ~ =
(x,y) = (3,4) ~ x = 3, y = 4 ~ =
$\boxed{5}$ and $\boxed{7}$ ~ 5,7 ~ =
\boxed{5}, \boxed{7} ~ 7, 5 ~ =
$\boxed{5}$ and $\boxed{7}$ ~ 12 ~ !
5, 5, 7 ~ 5, 7, 7 ~ !
\pm 3 ~ 3, -3 ~ =
x = \pm 3 ~ -3, 3 ~ =
2 \pm \sqrt{3} ~ 2+\sqrt{3}, 2-\sqrt{3} ~ =
\pm 3 ~ 3 ~ !
1 \text{ and } 2 ~ 1, 2 ~ =
# Percents
100\% ~ 1 ~ =
600\% ~ 6 ~ =
120\% ~ 1.2 ~ =
50\% ~ 0.5 ~ =
50\% ~ \frac12 ~ =
50 ~ 50\% ~ =
0.5 ~ 50\% ~ =
50\% ~ 5 ~ !
50\% ~ 0.05 ~ !
50\% ~ 60\% ~ !
50 percent ~ 50\% ~ =
50\text{ percent} ~ 0.5 ~ =
12.5\% ~ \frac18 ~ =
33\frac13\% ~ \frac13 ~ =
0.5\% ~ \frac{1}{200} ~ =
# Relations and symmetry
2\le x<3 ~ [2,3) ~ =
[2,3) ~ 2\le x<3 ~ =
2\le x<3 ~ (2,3) ~ !
2 \leq x < 3 ~ 3 > x \geq 2 ~ =
x \in [2,3) ~ [2,3) ~ =
x > 3 ~ (3,\infty) ~ =
x \ge 3 ~ (3,\infty) ~ !
x^2+y^2=25 ~ 25 ~ !
25 ~ x^2+y^2=25 ~ !
7 ~ x+y=7 ~ !
x+y=7 ~ 7 ~ !
x+y=7 ~ y+x=7 ~ =
y = 2x+1 ~ 2x+1 ~ =
y = 2x+1 ~ y = 2x+2 ~ !
x = 5 ~ 5 ~ =
5 = x ~ 5 ~ =
x = 5 ~ y = 5 ~ !
3 + 4 = 7 ~ 7 ~ =
3 + 4 = 7 ~ 3 ~ !
x \ne 2 ~ (-\infty,2)\cup(2,\infty) ~ =
x \ne 2 ~ x = 2 ~ !
x < 3 ~ x > 3 ~ !
# Bases
10_2 ~ 10_8 ~ !
10_2 ~ 10_{2} ~ =
101_2 ~ 5_{10} ~ =
27_8 ~ 27_9 ~ !
4210_5 ~ 4210_{5} ~ =
# Markup
\mathbf{\frac{2}{3}} ~ 2/3 ~ =
\mathbf{\frac{2}{3}} ~ \frac{3}{2} ~ !
\text{$\frac{2}{3}$} ~ \frac{2}{3} ~ =
\bf 5 ~ 5 ~ =
{\bf 5} ~ 5 ~ =
\boldsymbol{x+1} ~ 1+x ~ =
**5** ~ 5 ~ =
\(5\) ~ 5 ~ =
\text{Evelyn} ~ Evelyn ~ =
\left(1, \dfrac12\right) ~ (1, 0.5) ~ =
# Repeating decimals and mixed numbers
0.\overline{3} ~ \frac13 ~ =
0.\overline{3} ~ 0.3 ~ !
0.1\overline{6} ~ \frac16 ~ =
1.\overline{27} ~ \frac{14}{11} ~ =
0.\overline{9} ~ 1 ~ =
2 1/2 ~ 5/2 ~ =
2 1/2 ~ 1 ~ !
2\frac12 ~ 2.5 ~ =
2\frac{1}{2} ~ 1 ~ !
-2\frac{1}{2} ~ -\frac{5}{2} ~ =
-2\frac{1}{2} ~ -\frac{3}{2} ~ !
3 3/4 ~ 3.75 ~ =
# Words, letters, codes, times
pots ~ stop ~ !
Tuesday ~ \text{tuesday} ~ =
\text{odd} ~ \text{even} ~ !
(B) ~ \text{B} ~ =
0x10 ~ 0x11 ~ !
0x1F ~ 0x01f ~ =
2:55 ~ 3:55 ~ !
00:37:55 ~ 00:36:55 ~ !
4:30 \text{ p.m.} ~ 4:30 pm ~ =
# Formulas
\frac{R}{r} ~ \frac{r}{R} ~ !
\frac{R}{r} ~ 1 ~ !
(x+1)(x-1) ~ x^2-1 ~ =
\frac{\sqrt{2}}{2} ~ \frac{1}{\sqrt{2}} ~ =
\sin^2 x + \cos^2 x ~ 1 ~ =
x^2 ~ x^3 ~ !
2^{10} ~ 1024 ~ =
\log_2 8 ~ 3 ~ =
5! ~ 120 ~ =
\binom{5}{2} ~ 10 ~ =
"""


def hard_pairs() -> list[Hard]:
    pairs, heading = [], ""
    for line in PAIRS.strip().splitlines():
        if line.startswith("# "):
            heading = line[2:]
        else:
            answer, reference, verdict = line.split(" ~ ")
            assert verdict in "=!", line
            pairs.append(Hard(answer, reference, verdict == "=", heading))
    return pairs
