"""Linear + sigmoid focal loss: a matmul and the loss of its logits, without them, in each form."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import test_linear
import tolerances
from test_linear import STRATEGIES, assert_same, factors, operands, program

from focaljax import linear_sigmoid_focal_loss, reduce_loss, sigmoid_focal_loss_with_integer_labels
from focaljax.terms import Asymmetric, Detached, Focal, Poly

ROWS, WIDTH, CLASSES, LABELS = 12, 5, 32, 7  # chunks of 4 divide them
OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "capped": {"logit_soft_cap": 2.0},
    "ignored": {"ignore_index": 3},
    "classes that take part": {"where": np.arange(CLASSES) % 5 > 0},
    "examples that count": {"where": np.arange(ROWS)[:, None] % 3 > 0},
    "all": {
        "label_smoothing": 0.1,
        "logit_soft_cap": 2.0,
        "ignore_index": -7,
        "where": np.arange(CLASSES) < 29,
    },
}


@pytest.fixture(params=STRATEGIES)
def strategy(request) -> str:
    return request.param


def batch(dtype="float32", rows=ROWS, width=WIDTH, classes=CLASSES, labels=LABELS, **shapes):
    """Everything that may be differentiated; and lists of labels, some named twice, some outside."""
    floats, _ = test_linear.batch(dtype, rows, width, classes, **shapes)
    floats["alpha"] = 0.4 * floats["alpha"]  # weighs one answer, and 1 - alpha the other
    lists = np.random.default_rng(1).integers(-2, classes + 2, (rows, labels))
    lists[:, 1:3] = lists[:, :1]
    lists[0], lists[1, 0], lists[2, -1] = -1, 3, -7
    return floats, jnp.asarray(lists, jnp.int32)


def plain(
    inputs, kernel, labels, *, bias, sample_weight, reduction="mean", normalizer=None, cap=None, **options
):
    """From logits: each example has the sum over its classes."""
    z = jnp.matmul(inputs, kernel, preferred_element_type=jnp.float32) + bias.astype(jnp.float32)[None, :]
    z = z if cap is None else cap * jnp.tanh(z / cap)
    counts, where, ignored = jnp.ones(z.shape[0], bool), options.get("where"), options.get("ignore_index")
    if where is not None and where.shape[-1] == 1:
        counts = jnp.asarray(where[:, 0])
    if where is not None and where.ndim == 1:
        options["where"] = where[None, :]
    if ignored is not None:
        counts &= ~jnp.any(labels == ignored, 1)
    losses = jnp.sum(sigmoid_focal_loss_with_integer_labels(z, labels, **options), -1)
    return reduce_loss(losses, sample_weight, reduction, where=counts, normalizer=normalizer)


def both(options, **given):
    """The same options for the plain loss and for ours."""
    theirs = dict(options)
    return program(
        partial(plain, cap=theirs.pop("logit_soft_cap", None), **given), **theirs
    ), lambda strategy, chunk=4: program(
        partial(linear_sigmoid_focal_loss, strategy=strategy, chunk=chunk, **given), **options
    )


@pytest.mark.parametrize(
    ("options", "reduction"),
    [(options, "mean") for options in OPTIONS]
    + [("all", reduction) for reduction in ("sum", "mean_with_sample_weight", None)]
    + [("plain", None)],
)
def test_value_and_every_gradient_are_those_of_the_logits(options, reduction):
    floats, labels = batch()
    theirs, ours = both(OPTIONS[options], reduction=reduction)
    wanted = theirs(floats, labels)
    for strategy in STRATEGIES:
        assert_same(ours(strategy)(floats, labels), wanted)


@pytest.mark.parametrize(
    ("alpha", "gamma"), [((), (CLASSES,)), ((ROWS, 1), (1, CLASSES)), ((CLASSES,), (ROWS, 1))], ids=str
)
def test_options_of_every_shape(alpha, gamma):
    floats, labels = batch(alpha=alpha, gamma=gamma)
    theirs, ours = both({"label_smoothing": 0.1})
    wanted = theirs(floats, labels)
    for strategy in STRATEGIES:
        assert_same(ours(strategy)(floats, labels), wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    "term",
    [Poly(1.5, 0.5), Asymmetric(1.0, 2.0, np.linspace(0, 0.2, CLASSES)), Detached(Focal(2.0))],
    ids=lambda term: type(term).__name__,
)
def test_every_term(term, smoothing):
    floats, labels = batch()
    del floats["gamma"]
    theirs, ours = both({"label_smoothing": smoothing, "term": term})
    wanted = theirs(floats, labels)
    for strategy in STRATEGIES:
        assert_same(ours(strategy)(floats, labels), wanted)


def test_options_of_a_term_are_learned(strategy):
    floats, labels = batch()
    loss = partial(linear_sigmoid_focal_loss, floats["inputs"], floats["kernel"], labels)

    def of(options, call):
        return call(term=Asymmetric(options["yes"], options["no"], options["margin"]))

    def by_logits(**options):
        return plain(
            floats["inputs"],
            floats["kernel"],
            labels,
            bias=jnp.zeros(CLASSES),
            sample_weight=None,
            **options,
        )

    options = {"yes": jnp.float32(1.0), "no": jnp.full((CLASSES,), 2.0), "margin": jnp.full((ROWS, 1), 0.1)}
    found = jax.jit(jax.grad(partial(of, call=partial(loss, strategy=strategy, chunk=4))))(options)
    assert_same(found, jax.jit(jax.grad(partial(of, call=by_logits)))(options))


def test_any_chunk_gives_the_same():
    floats, labels = batch()
    theirs, ours = both({})
    wanted = theirs(floats, labels)
    for strategy in STRATEGIES:
        for chunk in (1, 10, 11, 31, 100, None):
            assert_same(ours(strategy, chunk)(floats, labels), wanted)


@pytest.mark.parametrize("labels", [0, 1, 4, 5, 40])
def test_lists_of_any_length(labels):
    """Few labels are compared with every class, many only in their chunk."""
    floats, lists = batch(labels=max(labels, 3))
    lists = jnp.asarray(np.random.default_rng(0).integers(-1, CLASSES + 1, (ROWS, labels)), jnp.int32)
    theirs, ours = both({})
    wanted = theirs(floats, lists)
    for strategy in STRATEGIES:
        assert_same(ours(strategy, 6)(floats, lists), wanted)


def test_one_label_per_example(strategy):
    floats, lists = batch()
    ours = partial(linear_sigmoid_focal_loss, floats["inputs"], floats["kernel"], strategy=strategy, chunk=4)
    assert ours(lists[:, 0]) == ours(lists[:, :1]) == ours(lists[:, :3])  # the same label three times


def test_the_mean_by_positives(strategy):
    floats, labels = batch()
    positive = (labels >= 0) & (labels < CLASSES)
    theirs, ours = both({"ignore_index": 3}, normalizer=positive)
    assert_same(ours(strategy)(floats, labels), theirs(floats, labels))


@pytest.mark.parametrize("reduction", ["mean", None])
def test_bfloat16_is_as_accurate_as_its_matmuls(strategy, reduction):
    """Compared with the logits of the same numbers in float32; each matmul rounds its operands."""
    floats, labels = batch("bfloat16", rows=64, width=32)
    theirs, ours = both({}, reduction=reduction)
    found = ours(strategy, 16)(floats, labels)
    assert found["loss"].dtype == jnp.float32
    assert all(found[name].dtype == floats[name].dtype for name in floats)
    wanted = theirs(jax.tree.map(jnp.float32, floats), labels)
    assert_same(jax.tree.map(jnp.float32, found), wanted, 2 * tolerances.eps("bfloat16"))


def test_float16_keeps_small_gradients(strategy):
    """A loss scale lifts them before they are float16, not after."""
    floats, labels = batch("float16", rows=64, width=32)
    floats["sample_weight"] = 1e-4 * floats["sample_weight"]
    scale = 2.0**14

    def scaled(loss, *arguments, **options):
        return scale * loss(*arguments, **options)

    ours = partial(linear_sigmoid_focal_loss, strategy=strategy, chunk=16)
    found = program(partial(scaled, ours))(floats, labels)
    wanted = program(partial(scaled, plain))(jax.tree.map(jnp.float32, floats), labels)
    for name in ("kernel", "inputs"):
        truth = np.asarray(wanted[name], np.float64)
        tolerances.assert_close(found[name], truth, rtol=0.05, scale=np.max(np.abs(truth)), label=name)


def products(loss, labels, floats, push):
    """The second derivatives in the direction `push`, forward and reverse over reverse."""

    def gradient(floats):
        def total(floats):
            given = dict(floats)
            found = loss(given.pop("inputs"), given.pop("kernel"), labels, **given)
            return jnp.sum(found if found.ndim == 0 else found * factors(found))

        return jax.grad(total)(floats)

    _, forward = jax.linearize(gradient, floats)
    (reverse,) = jax.linear_transpose(forward, floats)(push)
    return {f"forward {name}": x for name, x in forward(push).items()} | reverse


@cache
def products_of_logits(reduction):
    """Those of a gamma per logit. A shared one's add up with both signs: their sizes judge the sum."""
    floats, labels = batch()
    each = floats | {"gamma": jnp.broadcast_to(floats["gamma"], (ROWS, CLASSES))}
    push = jax.tree.map(jnp.cos, each)
    return jax.jit(partial(products, partial(plain, reduction=reduction), labels))(each, push)


@pytest.mark.parametrize("reduction", ["mean", None])
def test_second_derivatives(reduction, strategy):
    floats, labels = batch()
    wanted = dict(products_of_logits(reduction))
    ours = partial(linear_sigmoid_focal_loss, reduction=reduction, strategy=strategy, chunk=4)
    found = jax.jit(partial(products, ours, labels))(floats, jax.tree.map(jnp.cos, floats))
    rtol = tolerances.rtol("hessian")
    for name in ("gamma", "forward gamma"):
        parts = np.asarray(wanted.pop(name), np.float64)
        tolerances.assert_close(
            found.pop(name), parts.sum(), rtol=rtol, scale=np.abs(parts).sum(), label=name
        )
    assert_same(found, wanted, rtol)


@pytest.mark.parametrize("reduction", ["sum", None])
def test_what_takes_no_part_is_silent(strategy, reduction):
    """NaN and infinity of masked classes, ignored examples and examples of weight 0 change nothing."""
    floats, labels = batch()
    floats["sample_weight"] = floats["sample_weight"].at[5].set(0)
    labels = labels.at[4, 0].set(-5)
    bad = floats | {
        "inputs": floats["inputs"].at[4].set(jnp.nan).at[5, 1].set(jnp.inf),
        "kernel": floats["kernel"].at[:, 20].set(jnp.nan),
        "bias": floats["bias"].at[20].set(jnp.inf),
    }
    options = {"ignore_index": -5, "where": np.arange(CLASSES) != 20, "logit_soft_cap": 3.0}
    ours = both(options, reduction=reduction)[1](strategy)
    found, wanted = ours(bad, labels), ours(floats, labels)
    del found["sample_weight"], wanted["sample_weight"]  # the derivative by a weight of 0 is the loss
    for name, truth in wanted.items():
        assert np.all(np.isfinite(truth))
        np.testing.assert_allclose(found[name], truth, rtol=1e-6, atol=1e-7, err_msg=name)


@partial(jax.jit, static_argnums=2)
def slopes(logits, gamma, strategy):
    """The gradients of logits, each a class of its own, of which the first half are positive."""
    options = {"gamma": gamma, "reduction": "sum", "strategy": strategy, "chunk": 100}
    labels = jnp.arange(logits.size // 2)[None, :]
    loss = partial(linear_sigmoid_focal_loss, jnp.ones((1, 1)), labels=labels, **options)
    return jax.grad(loss)(logits[None, :])[0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_no_gradient_is_dead(gamma, strategy):
    """322 logits within +-40, each a class of its own, positive and negative: all exact, none 0."""
    z = np.float32(np.linspace(-40, 40, 161))
    logits, hard = np.tile(z, 2), np.repeat([1.0, 0.0], 161)
    truth = oracle.sigmoid_focal(logits, hard, gamma)
    gradient = np.asarray(slopes(logits, jnp.float32(gamma), strategy))
    assert np.all((gradient != 0) | (np.abs(truth.grad) < tolerances.flush()))
    tolerances.assert_close(
        gradient, truth.grad, rtol=tolerances.rtol("gradient", gamma), tiny=tolerances.flush()
    )


@partial(jax.jit, static_argnames="strategy", compiler_options=tolerances.OPTIMIZED)
def at_zero(labels, gamma, alpha, strategy):
    """The loss of 128 logits of 0."""
    layer = jnp.zeros((2, 8, 16)), jnp.zeros((16, 128))
    return linear_sigmoid_focal_loss(*layer, labels, gamma=gamma, alpha=alpha, strategy=strategy, chunk=64)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_closed_form_at_logits_of_0(gamma, balanced, strategy):
    """RecML's case, whose mean is over classes too: (1/2)^gamma log 2, weighed by 1 - alpha and one alpha."""
    classes, alpha = 128, 0.25
    labels = jnp.tile(jnp.array([[5, 5, -1, classes]]), (2, 8, 1))
    given = jnp.float32(gamma), jnp.float32(alpha) if balanced else None
    found = at_zero(labels, *given, strategy=strategy)
    wanted = 0.5**gamma * np.log(2) * ((alpha + (classes - 1) * (1 - alpha)) / classes if balanced else 1)
    np.testing.assert_allclose(found / classes, wanted, rtol=tolerances.rtol("value"))


# RecML's published cases: seed; batch, positions, width, classes, labels; gamma and alpha, if it balances.
PUBLISHED = {
    "standard": (0, (2, 256, 128, 1024, 4), 2.0, 0.25),
    "no balancing": (0, (2, 256, 128, 1024, 4), 2.0, None),
    "gamma 0": (0, (2, 256, 128, 1024, 4), 0.0, 0.25),
    "classes of no whole block": (0, (2, 256, 128, 1000, 4), 2.0, 0.25),
    "positions of no whole block": (0, (2, 130, 128, 1024, 4), 1.5, 0.25),
    "single label": (0, (2, 256, 128, 1024, 1), 2.0, 0.25),
    "gamma 1/2": (3, (2, 64, 32, 256, 2), 0.5, None),
    "gamma 1/4": (3, (2, 64, 32, 256, 2), 0.25, 0.25),
    "gamma 1": (3, (2, 64, 32, 256, 2), 1.0, None),
}


@jax.jit
def published(x, kernel, targets, gamma, alpha):
    loss = partial(linear_sigmoid_focal_loss, labels=targets, gamma=gamma, alpha=alpha, chunk=256)
    return jax.value_and_grad(loss, (0, 1))(x, kernel)


@pytest.mark.parametrize("case", PUBLISHED)
def test_the_published_cases_of_recml(case):
    """Loss and gradients of the operands that are drawn there, within its tolerance for the loss.

    The truth is the textbook in float64. Gradients are judged by their largest entry; there they may be off
    by 1e-4.
    """
    seed, (n, m, d, c, count), gamma, alpha = PUBLISHED[case]
    keys = jax.random.split(jax.random.key(seed), 3)
    x, embeddings = jax.random.normal(keys[0], (n, m, d)), jax.random.normal(keys[1], (c, d))
    targets = jax.random.randint(keys[2], (n, m, count), 0, c)

    found = published(x, embeddings.T, targets, *jax.tree.map(jnp.float32, (gamma, alpha)))

    x, w = np.float64(x).reshape(n * m, d), np.float64(embeddings).T
    side = np.full((n * m, c), -1.0)
    np.put_along_axis(side, np.asarray(targets).reshape(n * m, count), 1.0, 1)
    u = side * (x @ w)
    log_p, q = -np.logaddexp(0, -u), np.exp(-np.logaddexp(0, u))
    weight = 1 if alpha is None else np.where(side > 0, alpha, 1 - alpha)
    value = weight * q**gamma * -log_p / (n * m)
    slope = side * weight * q**gamma * (gamma * (1 - q) * log_p - q) / (n * m)
    wanted = value.sum(), ((slope @ w.T).reshape(n, m, d), x.T @ slope)
    for got, truth in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        tolerances.assert_close(got, truth, rtol=1e-5, scale=np.max(np.abs(truth)))


def test_matmuls_and_what_is_stored(strategy):
    """The value costs one matmul, with its gradient three; by classes no sum of the kernel's size is wide."""
    n, d, c = 48, 64, 8192
    shapes = ((n, d), "bfloat16"), ((d, c), "bfloat16"), ((n, 9), "int32")
    given = [jax.ShapeDtypeStruct(*x) for x in shapes]
    loss = partial(linear_sigmoid_focal_loss, strategy=strategy, chunk={"rows": 8, "classes": 128}[strategy])
    both = jax.value_and_grad(loss, (0, 1))
    value, text = (str(jax.make_jaxpr(f)(*given)) for f in (loss, both))
    assert (value.count("dot_general["), text.count("dot_general[")) == (1, 3)
    assert f"f32[{n},{c}]" not in text and f"bool[{n},{c}]" not in text
    carried = [v.aval for loop in loops(jax.make_jaxpr(both)(*given).jaxpr) for v in loop.outvars]
    assert carried
    sums = [x for x in carried if (x.shape, x.dtype) == ((d, c), jnp.float32)]
    assert bool(sums) == (strategy == "rows")


def loops(jaxpr):
    """Every scan of a program, those inside others too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from loops(inner)


@pytest.mark.parametrize(
    ("shape", "chosen"), {(64, 16, 512): "classes", (4096, 512, 131_072): "classes"}.items(), ids=str
)
def test_what_is_chunked(shape, chosen):
    def text(**options):
        loss = partial(linear_sigmoid_focal_loss, **options)
        return str(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(*operands(shape)))

    assert text() == text(strategy=chosen) != text(strategy="rows")


def test_a_million_classes_fit_in_4_gb():
    """With lists of 20; kernel and gradient take 2.1 GB of it."""
    x, kernel, labels = operands((8192, 256, 1_048_576))
    labels = jax.ShapeDtypeStruct((8192, 20), "int32")
    loss = jax.value_and_grad(linear_sigmoid_focal_loss, (0, 1))
    memory = jax.jit(loss).lower(x, kernel, labels).compile().memory_analysis()
    assert memory is not None
    parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
    assert sum(parts) <= 2.5e9  # Python and JAX themselves take 0.3 GB


@pytest.mark.parametrize("symbols", ["n", "c"])
def test_a_program_is_exported_for_shapes_to_come(symbols):
    floats, labels = batch()
    sizes = dict(zip(symbols.split(", "), jax.export.symbolic_shape(symbols), strict=True))
    n, c = sizes.get("n", ROWS), sizes.get("c", CLASSES)
    shapes = {
        "inputs": (n, WIDTH), "kernel": (WIDTH, c), "bias": (c,),
        "sample_weight": (n,), "alpha": (c,), "gamma": (),
    }  # fmt: skip
    given = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    theirs, _ = both({})
    ours = program(linear_sigmoid_focal_loss)
    exported = jax.export.export(ours)(given, jax.ShapeDtypeStruct((n, LABELS), "int32"))
    assert_same(exported.call(floats, labels), theirs(floats, labels))


WRONG = {
    "floating labels": ({"labels": jnp.zeros(2)}, TypeError, "`labels` must be integer class indices"),
    "labels of another shape": (
        {"labels": jnp.zeros((3, 4), jnp.int32)},
        ValueError,
        r"`labels` must have shape \(2,\), that of `inputs` without axis 1, or .* got \(3, 4\)",
    ),
    "alpha above 1": ({"alpha": 2.0}, ValueError, r"`alpha` must be in \[0, 1\], got 2"),
    "mask of logits": (
        {"where": jnp.ones((2, 5), bool)},
        ValueError,
        r"`where` must have one entry per class, \[5\], or per example, \(2, 1\); got \(2, 5\)",
    ),
    "floating mask": ({"where": jnp.ones(5)}, TypeError, "`where` must be boolean, got float32"),
    "normalizer of a sum": (
        {"normalizer": 3.0, "reduction": "sum"},
        ValueError,
        "`normalizer` must be None unless",
    ),
    "batch_axis_name": (
        {"batch_axis_name": "data"},
        ValueError,
        "`batch_axis_name` must name an axis of `jax.shard_map`",
    ),
    "reduction": ({"reduction": "average"}, ValueError, "`reduction` must be one of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case):
    changed, error, message = WRONG[case]
    given = {"inputs": jnp.zeros((2, 3)), "kernel": jnp.zeros((3, 5)), "labels": jnp.zeros(2, jnp.int32)}
    with pytest.raises(error, match=message):
        linear_sigmoid_focal_loss(**(given | changed))
