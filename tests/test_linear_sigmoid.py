"""Linear + sigmoid focal loss: a matmul and the loss of its logits, without them, in each form."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import test_linear
import tolerances
from conftest import OPTIMIZED
from pairs import every_pair
from test_linear import (
    STRATEGIES,
    assert_same,
    assert_silent,
    everything,
    operands,
    per_logit,
    products,
    program,
    spoiled,
)

from focaljax import linear_sigmoid_focal_loss, reduce_loss
from focaljax import sigmoid_focal_loss_with_integer_labels as sigmoid_focal_loss
from focaljax.terms import Asymmetric, Detached, Focal, Poly

ROWS, WIDTH, CLASSES, LABELS = 12, 5, 32, 7  # chunks of 4 divide them
MASKS = {
    "none": None,
    "classes that take part": np.arange(CLASSES) % 5 > 0,
    "examples that count": np.arange(ROWS)[:, None] % 3 > 0,
}


@pytest.fixture(params=STRATEGIES)
def strategy(request) -> str:
    return request.param


def batch(dtype="float32", rows=ROWS, width=WIDTH, classes=CLASSES, labels=LABELS, **shapes):
    """Everything that may be differentiated; and lists of labels, some named twice, some outside."""
    floats, _ = test_linear.batch(dtype, rows, width, classes, **shapes)
    floats["alpha"] *= np.float32(0.4)  # weighs one answer, and 1 - alpha the other
    lists = np.random.default_rng(1).integers(-2, classes + 2, (rows, labels))
    lists[:, 1:3] = lists[:, :1]
    lists[0], lists[1, 0], lists[2, -1] = -1, 3, -7
    return floats, np.int32(lists)


def plain(inputs, kernel, labels, *, bias, sample_weight, reduction="mean", normalizer=None, **options):
    """From logits: each example has the sum over its classes. Any option may be an operand; no cap is inf."""
    z = jnp.matmul(inputs, kernel, preferred_element_type=jnp.float32) + bias.astype(jnp.float32)[None, :]
    cap, ignored = options.pop("cap", jnp.inf), options.pop("ignored", NO_LABEL)
    capped = jnp.isfinite(cap)
    finite = jnp.where(capped, cap, 1.0)
    z = jnp.where(capped, finite * jnp.tanh(z / finite), z)
    counts = ~jnp.any(labels == ignored, 1)
    if "where" in options:
        counts &= jnp.any(options["where"], 1)
    losses = jnp.sum(sigmoid_focal_loss(z, labels, **options), -1)
    return reduce_loss(losses, sample_weight, reduction, where=counts, normalizer=normalizer)


NO_LABEL, LONGEST = -1000, 40


@partial(jax.jit, static_argnames="reduction")
def each_of_logits(floats, labels, reduction, options):
    return everything(plain, floats, labels, reduction=reduction, **options)


def of_logits(
    floats,
    labels,
    *,
    reduction="mean",
    label_smoothing=0.0,
    logit_soft_cap=None,
    ignore_index=None,
    where=None,
    **options,
):
    """What `everything` must find: by one program for all options."""
    shape = (labels.shape[0], floats["kernel"].shape[1])
    options |= {
        "label_smoothing": np.float32(label_smoothing),
        "cap": np.float32(np.inf if logit_soft_cap is None else logit_soft_cap),
        "ignored": np.int32(NO_LABEL if ignore_index is None else ignore_index),
        "where": np.broadcast_to(True if where is None else where, shape),
    }
    lists = np.pad(labels, ((0, 0), (0, LONGEST - labels.shape[1])), constant_values=-1)
    return per_logit(lambda given: each_of_logits(given, lists, reduction, options), floats, shape)


@every_pair(
    reduction=["mean", "sum", "mean_with_sample_weight", None],
    mask=MASKS,
    strategy=STRATEGIES,
    label_smoothing=[0.0, 0.1],
    logit_soft_cap=[None, 2.0],
    ignore_index=[None, 3, -7],
)
def test_value_and_every_gradient_are_those_of_the_logits(
    mask, strategy, reduction, label_smoothing, logit_soft_cap, ignore_index
):
    """Also with NaN and infinity in what takes no part."""
    floats, labels = batch(gamma=(CLASSES,))  # the gradient by a shared one may cancel
    floats["sample_weight"][5] = 0
    chosen = {
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "logit_soft_cap": logit_soft_cap,
        "ignore_index": ignore_index,
        "where": MASKS[mask],
    }
    ours = program(partial(linear_sigmoid_focal_loss, strategy=strategy, chunk=4), **chosen)
    found = ours(floats, labels)
    assert_same(found, of_logits(floats, labels, **chosen))
    assert_silent(ours(spoiled(floats, labels, MASKS[mask], ignore_index), labels), found)


@pytest.mark.parametrize(
    ("alpha", "gamma"),
    [((CLASSES,), ()), ((), (CLASSES,)), ((ROWS, 1), (1, CLASSES)), ((CLASSES,), (ROWS, 1))],
    ids=str,
)
def test_options_of_every_shape(strategy, alpha, gamma):
    floats, labels = batch(alpha=alpha, gamma=gamma)
    ours = partial(linear_sigmoid_focal_loss, strategy=strategy, chunk=4)
    wanted = of_logits(floats, labels, label_smoothing=0.1)
    assert_same(everything(ours, floats, labels, label_smoothing=0.1), wanted)


TERMS = {
    "Poly": Poly(1.5, 0.5),
    "Asymmetric": Asymmetric(1.0, 2.0, np.linspace(0, 0.2, CLASSES)),
    "Detached": Detached(Focal(2.0)),
}


@every_pair(term=TERMS, smoothing=[0.0, 0.1], strategy=STRATEGIES)
def test_every_term(term, smoothing, strategy):
    floats, labels = batch()
    del floats["gamma"]
    chosen = {"label_smoothing": smoothing, "term": TERMS[term]}
    ours = partial(linear_sigmoid_focal_loss, strategy=strategy, chunk=4)
    assert_same(everything(ours, floats, labels, **chosen), of_logits(floats, labels, **chosen))


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


@pytest.mark.parametrize(("chunk", "count"), [(1, 4), (10, 5), (11, 40), (31, 0), (100, 1)])
def test_any_chunk_and_lists_of_any_length(strategy, chunk, count):
    """Few labels are compared with every class, many only in their chunk."""
    floats, _ = batch()
    labels = np.int32(np.random.default_rng(0).integers(-1, CLASSES + 1, (ROWS, count)))
    ours = partial(linear_sigmoid_focal_loss, strategy=strategy, chunk=chunk)
    assert_same(everything(ours, floats, labels), of_logits(floats, labels))


def test_one_label_per_example(strategy):
    floats, lists = batch()
    ours = partial(linear_sigmoid_focal_loss, floats["inputs"], floats["kernel"], strategy=strategy, chunk=4)
    assert ours(lists[:, 0]) == ours(lists[:, :1]) == ours(lists[:, :3])  # the same label three times


def test_the_mean_by_positives(strategy):
    floats, labels = batch()
    positive = (labels >= 0) & (labels < CLASSES)
    ours = partial(linear_sigmoid_focal_loss, strategy=strategy, chunk=4, normalizer=positive)
    wanted = of_logits(floats, labels, ignore_index=3, normalizer=np.float32(positive.sum()))
    assert_same(everything(ours, floats, labels, ignore_index=3), wanted)


@pytest.mark.parametrize("reduction", ["mean", None])
def test_bfloat16_is_as_accurate_as_its_matmuls(strategy, reduction):
    """Compared with the logits of the same numbers in float32; each matmul rounds its operands."""
    floats, labels = batch("bfloat16", rows=64, width=32)
    ours = partial(linear_sigmoid_focal_loss, reduction=reduction, strategy=strategy, chunk=16)
    found = everything(ours, floats, labels)
    assert found["loss"].dtype == jnp.float32
    assert all(found[name].dtype == floats[name].dtype for name in floats)
    wanted = of_logits(jax.tree.map(np.float32, floats), labels, reduction=reduction)
    assert_same({name: np.float32(x) for name, x in found.items()}, wanted, 2 * tolerances.eps("bfloat16"))


def test_float16_keeps_small_gradients(strategy):
    """A loss scale lifts them before they are float16, not after."""
    floats, labels = batch("float16", rows=64, width=32)
    floats["sample_weight"] = 1e-4 * floats["sample_weight"]
    scale = 2.0**14

    def scaled(*arguments, **options):
        return scale * linear_sigmoid_focal_loss(*arguments, **options, strategy=strategy, chunk=16)

    found = everything(scaled, floats, labels)
    wanted = of_logits(jax.tree.map(np.float32, floats), labels)
    for name in ("kernel", "inputs"):
        truth = scale * np.asarray(wanted[name], np.float64)
        tolerances.assert_close(found[name], truth, rtol=0.05, scale=np.max(np.abs(truth)), label=name)


@cache
def products_of_logits(reduction):
    """Those of a gamma per logit. A shared one's add up with both signs: their sizes judge the sum."""
    floats, labels = batch()
    each = floats | {"gamma": np.broadcast_to(floats["gamma"], (ROWS, CLASSES))}
    return products(partial(plain, reduction=reduction), each, labels, jax.tree.map(np.cos, each))


@pytest.mark.parametrize("reduction", ["mean", None])
def test_second_derivatives(reduction, strategy):
    floats, labels = batch()
    wanted = dict(products_of_logits(reduction))
    ours = partial(linear_sigmoid_focal_loss, reduction=reduction, strategy=strategy, chunk=4)
    found = products(ours, floats, labels, jax.tree.map(np.cos, floats))
    rtol = tolerances.rtol("hessian")
    for name in ("gamma", "forward gamma"):
        parts = np.asarray(wanted.pop(name), np.float64)
        tolerances.assert_close(
            found.pop(name), parts.sum(), rtol=rtol, scale=np.abs(parts).sum(), label=name
        )
    assert_same(found, wanted, rtol)


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


@partial(jax.jit, static_argnames="strategy", compiler_options=OPTIMIZED)
def at_zero(labels, gamma, alpha, strategy):
    """The loss of 128 logits of 0."""
    layer = jnp.zeros((*labels.shape[:-1], 16)), jnp.zeros((16, 128))
    return linear_sigmoid_focal_loss(*layer, labels, gamma=gamma, alpha=alpha, strategy=strategy, chunk=64)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_closed_form_at_logits_of_0(gamma, balanced, strategy):
    """RecML's case, whose mean is over classes too: (1/2)^gamma log 2, weighed by 1 - alpha and one alpha.

    Of two examples: XLA's code for AVX-512 sums a small array in one chain, and equal numbers round alike.
    """
    classes, alpha = 128, 0.25
    labels = jnp.tile(jnp.array([[5, 5, -1, classes]]), (2, 1, 1))
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


@cache
def drawn(seed, shape):
    n, m, d, c, count = shape
    keys = jax.random.split(jax.random.key(seed), 3)
    x, embeddings = jax.random.normal(keys[0], (n, m, d)), jax.random.normal(keys[1], (c, d))
    return x, embeddings, jax.random.randint(keys[2], (n, m, count), 0, c)


@pytest.mark.parametrize("case", PUBLISHED)
def test_the_published_cases_of_recml(case):
    """Loss and gradients of the operands that are drawn there, within its tolerance for the loss.

    The truth is the textbook in float64. Gradients are judged by their largest entry; there they may be off
    by 1e-4.
    """
    seed, (n, m, d, c, count), gamma, alpha = PUBLISHED[case]
    x, embeddings, targets = drawn(seed, PUBLISHED[case][1])
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
        return str(jax.make_jaxpr(loss)(*operands(shape)))

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
    ours = program(linear_sigmoid_focal_loss)
    exported = jax.export.export(ours)(given, jax.ShapeDtypeStruct((n, LABELS), "int32"))
    assert_same(exported.call(floats, labels), of_logits(floats, labels))


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
