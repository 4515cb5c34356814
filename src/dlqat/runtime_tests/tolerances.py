# SPDX-License-Identifier: Apache-2.0
"""Every limit of the proof, with its reason. Measured on SmolLM2-135M and on tiny models of all families.

Integers have no tolerance: codes, zero-points and labels are equal, scales and float parameters are
equal bit for bit (rung L0).
"""

ROTARY = 1e-6
"""L0: rotary frequencies, relative; entries of rotary tables, per radian of their angle (1 at least).

The one thing of L0 that is computed again and not kept: cos and power differ by an ulp or two between machines (numpy's
code for AVX2 and AVX-512), and a frequency that is 2^-23 off has moved an angle of 4096 by 5e-4."""

SCALE = 1e-6
"""L0: a scale of attention or of hidden states, relative: a float32, or in Core ML the product of two."""

EPSILON = 1e-4
"""L0: the epsilon of a norm, relative. Others store the float32; Core ML has it as a product of float16 numbers
(coreml/builder.py), right to 1e-6 for 1e-5."""

LINEAR_ERROR = 1e-5
"""L1: ||y - y_ref|| / ||y_ref|| of a row, y_ref in float64 under the runtime's stated arithmetic.

Only the order of float32 additions may differ: 6e-8 per addition, over up to some thousand inputs that
partly cancel. Measured: 1e-7 to 6e-7. Rounding the input to int8 or not makes 1e-2, so the limit also
tells which arithmetic ran."""

BYTES_LINEAR_ERROR = 5e-4
"""L1, 8-bit weights times int8 activations.

MLAS multiplies unsigned bytes on ARM64 and takes what the 128s have added off again, in float32: for a row of 576
inputs sums of 74,000 steps whose difference is some hundred, and 74,000 * 2^-23 is 1e-2 steps. Measured on SmolLM2's
lm_head: 7e-5 (x86: 1e-6); it grows with the square root of the inputs. Rounding in another way still makes 1e-2, and with
float activations the same weights are held to LINEAR_ERROR."""

FLOAT16_LINEAR_ERROR = 2e-3
"""L1, float16 activations: input, weight and output are each rounded to 11 bits, by up to 2^-12 of themselves on
average over a row: 3e-4 to 6e-4 measured. A wrong scale or code makes more than 1e-2 in the rows that it reaches."""

PLAUSIBLE_ROUNDING = 0.1
"""L1, int8: largest relative error that rounding a linear's input to 8 bits can explain (20 dB).

Measured: 0.007 to 0.03. A linear between LINEAR_ERROR and this, under no arithmetic that we can state,
is "not verified"; beyond it is wrong."""

ROUNDING_GAIN = 0.01
"""L1, int8: how far the size of a product may be from its reference's where no stated arithmetic fits.

Errors of rounding go both ways and cancel over the rows: measured below 1e-3 for every arithmetic of arithmetic.py, on
random and on SmolLM2's activations. A scale that is wrong by one percent is no rounding."""

UNSTATED_COST = 10.0
"""L2 and L3, int8 in a way that is not stated: the mean KL to the float reference may be this many times that of int8 per
token, the coarsest arithmetic that we know (1 to 3 times is what others cost). Within it the runtime is "not
verified"; beyond it, or with NaN, it is wrong however it rounds."""

FLOAT_KL_MAX = 1e-5
"""L2, float activations: KL(reference || runtime) in nats of the worst position, and top-1 always equal.

Two right float32 forwards differ by 1e-10 (KL) and 1e-4 (logits of 35): measured with the reference
against itself with 1e-6 relative noise on every linear's input. 1e-5 is far above that, and a change of
one in 100,000 in a probability is what no user can see."""

FLOAT16_KL_MAX = 1e-3
"""L2, float16 activations: KL of the worst position against the reference with rotary tables in float16.

Every operation rounds to 11 bits, through some hundred operations one after the other. Measured on SmolLM2-135M int4
over 300 tokens: 1.8e-4; on random two-layer models 1e-6 to 1e-5. An RMSNorm that overflows makes 10."""

FLOAT16_TIE = 4e-3
"""L2 and L3, float16: as TIE; a float16 forward is right to about 4e-3 of the largest logit (2 to 4 steps of 2^-10).

Measured on SmolLM2-135M: 1 of 300 positions has another first token, two logits 0.024 apart of 14."""

TIE = 1e-5
"""L2 and L3: two logits closer than TIE * max|logit| are a tie, and either may come first.

A float32 forward is right to about 4e-6 of the largest logit (measured: 1.1e-4 of 30), on both sides."""

NUDGE = 1e-6
"""Size of the relative noise on every linear's input that measures the noise floor (reference.py).

The kernels differ from exact arithmetic by 1e-7 to 4e-7 per linear, so the noise is a little larger than
what it stands for."""

NUDGES = 4
"""How often the noise floor is measured, each with other noise; the worst counts."""

FLOOR_MEAN = 2.0
FLOOR_P99 = 4.0
"""L2, int8 activations: mean and 99th percentile of KL may be this many times the noise floor's worst.

int8 rounding makes a model chaotic: a nudge of 1e-6 flips codes, which flip more in the next layer, until
two equally right runs are as far apart as int8 is from float. On SmolLM2 that is saturated (mean KL 3.7e-3
+- 3 % whatever the size of the nudge, 99th percentile +- 20 %); on a two-layer model a handful of
flips decide, and the mean of one run is up to 100 times that of another, so the worst of NUDGES runs counts.
Measured against these limits: onnxruntime on SmolLM2 at 0.5, on 70 random two-layer models (all families,
both forms) at 0.01 to 0.32. A broken kernel or cache is orders of magnitude away. What the floor hides of linears, L1 sees:
there each is held to LINEAR_ERROR under the same int8 arithmetic. What it hides of norms, attention and rotary positions (an
epsilon of 1e-3, a theta 10 % off) L0 reads from the file (check/facts.py)."""

FLOOR_TOP1_SIGMAS = 3.0
"""L2, int8: how far the top-1 agreement may lie below the floor's worst, in binomial standard deviations."""

ACCURACY_POINTS = 0.01
"""L4: how much smaller the share of right answers may be than the reference's, on the same questions.

One point of a hundred is what users of quantized models accept without a word. It is a test of non-inferiority: passed
if the whole 95 % interval of the paired difference lies above the limit, failed if it lies below, else the questions
are too few to tell. Two runtimes that answer alike need about 300 questions."""

PERPLEXITY_NATS = 0.01
"""L4: how much larger the mean negative log-likelihood per token may be than the reference's: 1 % of perplexity,
decided as ACCURACY_POINTS is. The reference multiplies in float. onnxruntime in float differs by 1e-7 on SmolLM2-135M;
XNNPACK's int8 activations, which its .pte cannot be without, cost 0.014 (0.008 to 0.019 on 8,176 tokens) where the model
was rounded to nearest and not trained with them: more than the limit, and L4 says whose cost it is."""

NOTICED = 2.0
"""L5: the factor on one scale that L2 must notice. Smaller factors are reported as the sensitivity."""

GREEDY_TOKENS = 64
"""L3: tokens per prompt."""

QUICK_TOKENS = 16
"""L3 of --quick: tokens of its one prompt. Enough to run the program that apps run, prefill and decode."""
