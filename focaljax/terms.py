"""The focal family: a loss is one function of the odds of the labelled class.

A *term* maps the five exact numbers of a class, its :class:`Odds`, to a loss. Everything else (row
statistics, stable gradients, derivatives of every order, chunks, meshes) is shared by the whole family. Pass
a term to any loss of :mod:`focaljax.losses`; ``gamma=2.0`` is short for ``term=Focal(2.0)``.

A new member is a subclass with its options as fields and one method, `value`::

    class Squared(Term):
        scale: Any = 1.0

        def value(self, odds):
            return self.scale * odds.q**2

Its gradient comes from the closed rule of the odds. Write `pull` too where a shorter or more exact form is
known. Options are data: numbers, ``[C]`` per class or ``[..., 1]`` per example; traced and differentiated.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast, dataclass_transform

import jax
import jax.numpy as jnp
from jax import lax

from focaljax._odds import Odds, beyond, finite, inverse_of_q, rises

__all__ = ["Asymmetric", "Detached", "Focal", "Odds", "Poly", "Term"]

Ranges = dict[str, tuple[float, float]]
FROM0 = (0, float("inf"))


@dataclass_transform(frozen_default=True)
class Term:
    """A loss of one class. A subclass is a frozen dataclass and a pytree of its fields, its options.

    Attributes:
      ranges: Lowest and highest value of an option by its name, both allowed; any finite number without one.

    Example:
      >>> class Squared(Term):
      ...     scale: Any = 1.0
      ...
      ...     def value(self, odds):
      ...         return self.scale * odds.q**2
      >>> from focaljax import softmax_focal_loss_with_integer_labels
      >>> loss = lambda z: softmax_focal_loss_with_integer_labels(z, 0, term=Squared(4.0))
      >>> value, gradient = jax.value_and_grad(loss)(jnp.zeros(2))
      >>> print(value, gradient)  # 4 / 2^2; -2 q * pq * 4
      1.0 [-1.  1.]
      >>> odds, term = Odds.at(0.0), Squared(4.0)
      >>> print(f"{term.value(odds):.4f} {term.pull(odds):.4f}")
      1.0000 2.0000
      >>> print(f"{term.factor(odds):.4f} {term.log_pull(odds):.4f}")
      1.4427 0.6931
    """

    ranges: ClassVar[Ranges] = {}

    @property
    def binary(self) -> bool:
        """Whether it is for sigmoid losses only, as its two answers differ."""
        return type(self).negative is not Term.negative

    def __init_subclass__(cls, **options: Any) -> None:
        """Makes a dataclass and a pytree of each subclass."""
        super().__init_subclass__(**options)
        dataclass(frozen=True)(cls)
        names = [field.name for field in fields(cast(Any, cls))]

        def flatten(term):
            # The class is data of the tree: JAX 0.10 takes two registered dataclasses of like fields for one.
            return [(jax.tree_util.GetAttrKey(name), getattr(term, name)) for name in names], cls

        def unflatten(cls, options):
            term = object.__new__(cls)
            for name, option in zip(names, options, strict=True):
                object.__setattr__(term, name, option)
            return term

        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)

    def value(self, odds: Odds) -> jax.Array:
        """The loss of a class with these odds; differentiable in the odds and in the options.

        Args:
          odds: Of one class each. `odds.phi` moves by a difference of near numbers as p -> 1: keep it out.

        Returns:
          One loss per class, in the shape of the odds.

        Raises:
          NotImplementedError: The subclass has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `value`.")

    def pull(self, odds: Odds) -> jax.Array:
        """How strongly the class pulls its logit up: ``-d value / du = q * pull``.

        Args:
          odds: Of one class each.

        Returns:
          One number per class. The default comes from `value` by the rule of the odds.
        """
        odds = finite(odds)
        return -jax.jvp(self.value, (odds,), (rises(odds),))[1] * inverse_of_q(odds)

    def log_pull(self, odds: Odds) -> jax.Array:
        """``log pull``, for :func:`focaljax.calibration.log_posterior`.

        Args:
          odds: Of one class each.

        Returns:
          One number per class. A closed form does not underflow where the pull does.

        Example:
          >>> odds = Odds.at(jnp.log(3.0))
          >>> print(f"{jnp.abs(Asymmetric(0.0).log_pull(odds)):.4f}")  # cross-entropy
          0.0000
        """
        return jnp.log(self.pull(odds))

    def factor(self, odds: Odds) -> jax.Array:
        """What modulates the cross-entropy: ``value = factor * (-log p)``, for :class:`Detached`.

        Args:
          odds: Of one class each.

        Returns:
          One number per class.

        Example:
          >>> print(f"{Asymmetric(1.0).factor(Odds.at(jnp.log(3.0))):.4f}")
          0.2500
        """
        odds = finite(odds)
        some = odds.log_p < 0
        return jnp.where(some, self.value(odds) / jnp.where(some, -odds.log_p, 1), 0)

    def negative(self, odds: Odds) -> tuple["Term", Odds]:
        """What the answer "no" of a sigmoid loss costs: a term, and the odds at which it is read.

        Args:
          odds: Of the answer "no", so that `odds.q` is the probability of the class.

        Returns:
          The term itself at these odds, unless the two answers differ.

        Example:
          >>> term, odds = Focal(1.0).negative(Odds.at(jnp.log(3.0)))
          >>> print(f"{term.value(odds):.4f}")  # 0.25 * -log 0.75
          0.0719
        """
        return self, odds


@jax.custom_jvp
def value_of(term: Term, odds: Odds) -> jax.Array:
    """The loss of a class; where it is infinite its derivatives are finite."""
    return term.value(odds)


@value_of.defjvp
def _value_of_jvp(primals, tangents):
    moved = jax.jvp(lambda term, odds: term.value(finite(odds)), primals, tangents)[1]
    return value_of(*primals), moved


def by_options(term: Any, odds: Odds) -> Any:
    """The derivative of the value by each option; options and odds of one shape.

    An infinite loss does not depend on them: at p = 0 the factor is 1 or its limit.
    """
    value, pull_back = jax.vjp(lambda term: term.value(finite(odds)), term)
    return pull_back(jnp.ones_like(value))[0]


class Focal(Term):
    r"""Focal loss, ``q^gamma * (-log p)``: the easier an example is, the less it counts.

    Attributes:
      gamma: Focusing exponent, at least 0; 0 is the cross-entropy.

    Raises:
      TypeError: An option is no real number. This and the next come from the loss that takes the term.
      ValueError: An option has the wrong shape, or a known value is out of range.

    Example:
      >>> from focaljax import softmax_focal_loss_with_integer_labels
      >>> logits, label = jnp.log(jnp.array([0.5, 0.25, 0.25])), 0
      >>> loss = softmax_focal_loss_with_integer_labels(logits, label, term=Focal(1.0))
      >>> print(f"{loss / jnp.log(2):.4f}")  # (1 - 0.5) * log 2
      0.5000
      >>> odds, term = Odds.at(0.0), Focal(1.0)
      >>> print(f"{term.value(odds):.4f} {term.pull(odds):.4f}")
      0.3466 0.8466
      >>> print(f"{term.factor(odds):.4f} {term.log_pull(odds):.4f}")
      0.5000 -0.1666

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equation 4.
    """

    gamma: Any = 2.0

    ranges: ClassVar[Ranges] = {"gamma": FROM0}

    def value(self, odds: Odds) -> jax.Array:
        """``q^gamma * (-log p)``."""
        return self.factor(odds) * -odds.log_p

    def pull(self, odds: Odds) -> jax.Array:
        """``q^gamma * (1 + gamma * phi)``: no power is negative and no term cancels."""
        return self.factor(odds) * (1 + self.gamma * odds.phi)

    def log_pull(self, odds: Odds) -> jax.Array:
        """``gamma log q + log(1 + gamma phi)``."""
        return self.gamma * odds.log_q + jnp.log1p(self.gamma * odds.phi)

    def factor(self, odds: Odds) -> jax.Array:
        """``q^gamma``."""
        return odds.power_of_q(self.gamma)


class Poly(Term):
    r"""Poly-1 focal loss: the first coefficient of focal loss as a polynomial of q is raised by epsilon.

    .. math:: L = q^\gamma (-\log p) + \epsilon \, q^{\gamma + 1}

    Attributes:
      gamma: Focusing exponent, at least 0; 0 is the poly cross-entropy.
      epsilon: The change of the first coefficient, finite; the paper searches from -1 upwards. Below 0 the
        two terms have different signs: the error is relative to the sum of their sizes.

    Raises:
      TypeError: An option is no real number. This and the next come from the loss that takes the term.
      ValueError: An option has the wrong shape, or a known value is out of range.

    Example:
      >>> import optax
      >>> from focaljax import softmax_focal_loss
      >>> logits, labels = jnp.array([[2.0, 1.0, -1.0]]), jnp.array([[0.0, 1.0, 0.0]])
      >>> ours = softmax_focal_loss(logits, labels, term=Poly(gamma=0.0, epsilon=2.0))
      >>> theirs = optax.losses.poly_loss_cross_entropy(logits, labels, epsilon=2.0)
      >>> print(f"{ours[0]:.5f} {theirs[0]:.5f}")
      2.83002 2.83002
      >>> odds, term = Odds.at(0.0), Poly(1.0, 2.0)
      >>> print(f"{term.value(odds):.4f} {term.pull(odds):.4f}")
      0.8466 1.8466
      >>> print(f"{term.factor(odds):.4f} {term.log_pull(odds):.4f}")
      1.2213 0.6133

    References:
      Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", 2022
      (https://arxiv.org/abs/2204.12511): Poly-1.
    """

    gamma: Any = 2.0
    epsilon: Any = 1.0

    ranges: ClassVar[Ranges] = {"gamma": FROM0}

    def value(self, odds: Odds) -> jax.Array:
        """``q^gamma * (-log p + epsilon q)``."""
        return odds.power_of_q(self.gamma) * (self.epsilon * odds.q - odds.log_p)

    def pull(self, odds: Odds) -> jax.Array:
        """``q^gamma * (1 + gamma phi + epsilon (gamma + 1) p)``."""
        gamma, p = self.gamma, odds.p
        return odds.power_of_q(gamma) * (1 + gamma * odds.phi + self.epsilon * (gamma + 1) * p)

    def log_pull(self, odds: Odds) -> jax.Array:
        """The logarithm of its parts; NaN where an epsilon far below 0 makes the pull negative."""
        gamma, p = self.gamma, odds.p
        return gamma * odds.log_q + jnp.log1p(gamma * odds.phi + self.epsilon * (gamma + 1) * p)


class Detached(Term):
    """Another term whose modulating factor is a constant to derivatives.

    The value is that of the term, the gradient that of a cross-entropy weighed by
    ``factor = value / (-log p)``. Options inside the factor have the gradient 0.

    Attributes:
      term: A term.

    Raises:
      TypeError: An option is no real number. This and the next come from the loss that takes the term.
      ValueError: An option has the wrong shape, or a known value is out of range.

    Example:
      >>> from focaljax import softmax_focal_loss_with_integer_labels
      >>> loss = lambda z: softmax_focal_loss_with_integer_labels(z, 0, term=Detached(Focal(1.0)))
      >>> print(jax.grad(loss)(jnp.zeros(2)))  # that of the cross-entropy, -q, times q
      [-0.25  0.25]
      >>> odds, term = Odds.at(0.0), Detached(Focal(1.0))
      >>> print(f"{term.value(odds):.4f} {term.pull(odds):.4f}")
      0.3466 0.5000
      >>> print(f"{term.factor(odds):.4f} {term.log_pull(odds):.4f} {term.negative(odds)[0].term.gamma}")
      0.5000 -0.6931 1.0

    References:
      `disable_torch_grad_focal_loss` of Ridnik et al., "Asymmetric Loss For Multi-Label Classification", 2021
      (https://arxiv.org/abs/2009.14119), in its authors' code.
    """

    term: Any

    def value(self, odds: Odds) -> jax.Array:
        """``factor * (-log p)``."""
        return self.pull(odds) * -odds.log_p

    def pull(self, odds: Odds) -> jax.Array:
        """The factor of the term."""
        return lax.stop_gradient(self.term.factor(odds))

    @property
    def binary(self) -> bool:
        """Whether the term is for sigmoid losses only."""
        return self.term.binary

    def negative(self, odds: Odds) -> tuple[Term, Odds]:
        """That of the term, its factor a constant too."""
        term, odds = self.term.negative(odds)
        return Detached(term), odds


class Asymmetric(Term):
    r"""Asymmetric loss of many independent labels: easy negatives count less than positives, or not at all.

    .. math:: L_{yes} = (1 - p)^{\gamma_+} (-\log p), \quad
              L_{no} = r^{\gamma_-} (-\log(1 - r)), \quad r = \max(p - m, 0)

    With p the probability of the class. A negative below the margin m has exactly the loss 0 and no gradient.
    The error of r is that of rounding m. For sigmoid losses only.

    Attributes:
      gamma_positive: Focusing exponent of the answer "yes", at least 0.
      gamma_negative: That of "no", at least 0; below 1 the gradient is infinite where r reaches 0.
      margin: What is taken from the probability of a negative, in [0, 1).

    Raises:
      TypeError: An option is no real number. This and the next come from the loss that takes the term.
      ValueError: An option has the wrong shape, or a known value is out of range; or a softmax loss got it.

    Example:
      >>> from focaljax import sigmoid_focal_loss
      >>> logits = jnp.log(jnp.array([1.0, 1.0, 0.04]))  # p = 1/2, 1/2, 0.04 / 1.04
      >>> losses = sigmoid_focal_loss(logits, jnp.array([1.0, 0.0, 0.0]), term=Asymmetric(1.0, 2.0, 0.05))
      >>> [round(float(x), 6) for x in losses]  # 0.5 log 2; 0.45^2 * -log 0.55; below the margin
      [0.346574, 0.121062, 0.0]
      >>> odds, term = Odds.at(0.0), Asymmetric(1.0, 2.0, 0.05)
      >>> print(f"{term.value(odds):.4f} {term.pull(odds):.4f}")  # of the answer "yes"
      0.3466 0.8466
      >>> other, at = term.negative(odds)
      >>> print(f"{other.value(at):.4f} {term.binary}")
      0.1211 True

    References:
      Ridnik et al., "Asymmetric Loss For Multi-Label Classification", 2021 (https://arxiv.org/abs/2009.14119),
      equations 4 to 7; its defaults are those of the authors' code.
    """

    gamma_positive: Any = 1.0
    gamma_negative: Any = 4.0
    margin: Any = 0.05

    ranges: ClassVar[Ranges] = {"gamma_positive": FROM0, "gamma_negative": FROM0, "margin": (0, 1 - 2.0**-24)}

    def value(self, odds: Odds) -> jax.Array:
        """Of the answer "yes"."""
        return Focal(self.gamma_positive).value(odds)

    def negative(self, odds: Odds) -> tuple[Term, Odds]:
        """Focal loss where r is the probability of a wrong answer."""
        return Focal(self.gamma_negative), beyond(odds, self.margin)
