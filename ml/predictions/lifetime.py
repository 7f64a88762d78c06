"""How often customers will come back, whether they are still there, and what they will spend.

Two models of purchases of customers who leave without saying so, and one of what a purchase is worth:

- `BetaGeoModel`, BG/NBD: Fader, Hardie and Lee, "Counting your customers" the easy way: an alternative to the
  Pareto/NBD model, Marketing Science 24(2), 2005. Purchases are Poisson with rate lambda ~ Gamma(r, alpha);
  after each purchase the customer leaves with probability p ~ Beta(a, b).
- `ParetoModel`, Pareto/NBD: Schmittlein, Morrison and Colombo, Counting your customers: who are they and what
  will they do next?, Management Science 33(1), 1987. The same purchases; customers leave at a rate mu ~
  Gamma(s, beta).
- `GammaGammaModel`: Fader, Hardie and Lee, RFM and CLV, Journal of Marketing Research 42(4), 2005; Fader and
  Hardie, The gamma-gamma model of monetary value, 2013. A customer's purchases are worth z ~ Gamma(p, nu), nu
  ~ Gamma(q, gamma).

All learn by maximum likelihood from **summaries**, a row a customer (`SUMMARY_COLUMNS`): `frequency` x, days
with a purchase after the first one; `recency` t_x, from the first purchase to the last; `age` T, from the
first purchase until now; `monetary_value`, the mean worth of those x days. Times are in one unit, and so are
the parameters and what is asked. BG/NBD expects too little of long futures (of CDNOW's 1,882 holdout purchases
it forecasts 1,653): nobody who has not come back can have left, but whoever has may have, at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy.optimize import OptimizeResult, minimize
from scipy.special import betaln, expit, gammaln, hyp2f1
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ml.predictions.base import NotEnoughData, hyp2f1_series, log_hyp2f1

SUMMARY_COLUMNS = ("frequency", "recency", "age")
MIN_REPEATERS = 10
"""Customers who came back that a fit needs at least: four parameters from fewer are chance."""
_BOUND = 15.0
"""Of the logarithm of a time or an amount in scaled units, to both sides: that is for ever."""
_SHAPE_BOUND = 6.0
"""Of the logarithm of a shape: people of whom it is 400 are all alike, and the functions below are true up to
there.
"""


def purchase_summaries(
    orders: pl.DataFrame, as_of: ArrayLike | pl.Expr, *, unit_days: float = 1.0
) -> pl.DataFrame:
    """Summaries of who bought before a day; all purchases of one day are one.

    Args:
        orders: contact_id, ordered_on (Date) and revenue (numbers).
        as_of: the last day of the past, which is still part of it (a Python date or an expression of one).
        unit_days: days of a unit of time, 7 for weeks.

    Returns:
        contact_id, frequency (Int64), recency, age and monetary_value (Float64), in order of contact_id;
        monetary_value is 0 for who came once.
    """
    end = as_of if isinstance(as_of, pl.Expr) else pl.lit(as_of)
    days = (
        orders.filter(pl.col("ordered_on") <= end)
        .group_by("contact_id", "ordered_on")
        .agg(pl.col("revenue").cast(pl.Float64).sum())
        .sort("contact_id", "ordered_on")
    )
    first, last = pl.col("ordered_on").min(), pl.col("ordered_on").max()
    repeated = pl.col("revenue").slice(1)
    return (
        days.group_by("contact_id", maintain_order=True)
        .agg(
            (pl.len().cast(pl.Int64) - 1).alias("frequency"),
            ((last - first).dt.total_days() / unit_days).alias("recency"),
            ((end - first).dt.total_days() / unit_days).alias("age"),
            repeated.mean().fill_null(0.0).alias("monetary_value"),
        )
        .sort("contact_id")
    )


def _checked(summaries: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, t_x and T as (n,) floats.

    Raises:
        ValueError: a column is missing, null or not finite, or a customer cannot be so.
    """
    missing = [name for name in SUMMARY_COLUMNS if name not in summaries.columns]
    if missing:
        raise ValueError(f"summaries lack {', '.join(missing)}; they need {', '.join(SUMMARY_COLUMNS)}")
    columns = []
    for name in SUMMARY_COLUMNS:
        values = summaries[name].cast(pl.Float64)
        if values.null_count() or not values.is_finite().all():
            raise ValueError(f"summaries: {name} must be a number in every row")
        columns.append(values.to_numpy())
    x, recency, age = columns
    if (x < 0).any() or (recency < 0).any() or (recency > age + 1e-9).any():
        raise ValueError("summaries: frequency and recency are at least 0, and recency is at most age")
    if ((x == 0) & (recency > 0)).any():
        raise ValueError("summaries: who never came back has a recency of 0")
    return x, recency, np.maximum(age, recency)


def _loss(found: OptimizeResult) -> float:
    return float(found.fun)


class _PurchaseModel(BaseEstimator, ABC):
    """Fitting that both models of purchases share.

    Attributes:
        parameters_: their names and values, in units of the summaries.
        log_likelihood_: of the summaries learnt from, at its maximum.
        n_customers_: how many there were.
    """

    _names: tuple[str, str, str, str]
    _times: tuple[int, ...]
    """Positions of the parameters that are times."""

    def fit(self, summaries: pl.DataFrame, y: None = None):  # noqa: ARG002
        """Find the parameters under which the summaries are likeliest.

        Equal customers are taken together, times are scaled to a mean age of one, and the search goes over
        logarithms of the parameters, from several starts.

        Args:
            summaries: frequency, recency and age, a row a customer.
            y: not used; for scikit-learn's sake.

        Raises:
            ValueError: see `SUMMARY_COLUMNS` for what summaries must hold.
            NotEnoughData: fewer than ten customers came back, or nobody has been a customer for any time.
        """
        x, recency, age = _checked(summaries)
        repeaters = int((x > 0).sum())
        if repeaters < MIN_REPEATERS:
            raise NotEnoughData(
                f"not enough data: {repeaters} of {len(x)} customers came back; {MIN_REPEATERS} are needed"
            )
        scale = float(age.mean())
        if scale <= 0:
            raise NotEnoughData("not enough data: nobody has been a customer for a day")
        rows, weights = np.unique(np.column_stack([x, recency, age]), axis=0, return_counts=True)
        x, recency, age = rows[:, 0], rows[:, 1] / scale, rows[:, 2] / scale

        def loss(logs: np.ndarray) -> float:
            # at the bounds differences of infinities arise, which are no solution
            with np.errstate(invalid="ignore", over="ignore"):
                values = self._log_likelihood(np.exp(logs), x, recency, age)
            total = float(weights @ values)
            return -total / weights.sum() if np.isfinite(total) else 1e10

        limits = [_BOUND if place in self._times else _SHAPE_BOUND for place in range(4)]
        bounds = [(-_BOUND, limit) for limit in limits]
        found: list[OptimizeResult] = [
            minimize(loss, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
            for start in self._starts(x, age, weights)
        ]
        best = min(found, key=_loss)
        # the last digits: the simplex does not mind a flat valley
        polished = minimize(
            loss, best.x, method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-5, "fatol": 1e-10}
        )
        best = min(best, polished, key=_loss)
        values = np.exp(best.x)
        values[list(self._times)] *= scale
        self.parameters_ = dict(zip(self._names, values.tolist(), strict=True))
        self.n_customers_ = int(weights.sum())
        # the density of purchases at x times has the dimension of time to the minus x
        self.log_likelihood_ = float(-best.fun * weights.sum() - np.log(scale) * (weights @ x))
        return self

    def log_likelihood(self, summaries: pl.DataFrame) -> np.ndarray:
        """(n,) log likelihood of each customer."""
        return self._log_likelihood(self._values(), *_checked(summaries))

    def _values(self) -> np.ndarray:
        check_is_fitted(self, "parameters_")
        return np.array([self.parameters_[name] for name in self._names])

    @abstractmethod
    def _log_likelihood(
        self, parameters: np.ndarray, x: np.ndarray, recency: np.ndarray, age: np.ndarray
    ) -> np.ndarray: ...

    @abstractmethod
    def _starts(self, x: np.ndarray, age: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
        """Logarithms of parameters to begin at, ages around 1."""

    @abstractmethod
    def alive_probability(self, summaries: pl.DataFrame) -> np.ndarray:
        """(n,) probability that a customer has not left for good, 0 to 1."""

    @abstractmethod
    def expected_purchases(self, summaries: pl.DataFrame, time: float | ArrayLike) -> np.ndarray:
        """(n,) days with a purchase to be expected within a time from now, given the past.

        Args:
            summaries: frequency, recency and age.
            time: at least 0, one or (n,), in the summaries' unit.

        Raises:
            ValueError: the time is negative.
        """

    @abstractmethod
    def expected_purchases_of_new(self, time: float | ArrayLike) -> np.ndarray:
        """Purchases after the first one to be expected of a customer within a time from the first one."""

    @abstractmethod
    def simulate(self, ages: ArrayLike, seed: int) -> pl.DataFrame:
        """Customers of this model.

        Args:
            ages: (n,) how long each has been a customer.
            seed: of the random numbers.

        Returns:
            Summaries with `is_alive` and the customer's own rate.
        """

    def order_probability(self, summaries: pl.DataFrame, time: float) -> np.ndarray:
        """(n,) probability of at least one purchase within a time from now.

        The next purchase of who is still there comes with rate lambda ~ Gamma(r + x, alpha + T), so that
        P(order) = P(alive) (1 - ((alpha + T) / (alpha + T + time))^(r + x)). Exact for BG/NBD, in which nobody
        leaves between purchases; for Pareto/NBD an upper bound.
        """
        x, _, age = _checked(summaries)
        r, alpha = self.parameters_["r"], self.parameters_["alpha"]
        silent = (r + x) * np.log((alpha + age) / (alpha + age + time))
        return self.alive_probability(summaries) * -np.expm1(silent)

    def next_purchase(self, summaries: pl.DataFrame, quantile: float = 0.5) -> np.ndarray:
        """(n,) time from now within which the next purchase comes with this probability, if the customer is
        still there.

        Lomax: (alpha + T) ((1 - quantile)^(-1 / (r + x)) - 1).

        Raises:
            ValueError: the quantile is not between 0 and 1.
        """
        if not 0 < quantile < 1:
            raise ValueError("quantile must be between 0 and 1")
        check_is_fitted(self, "parameters_")
        x, _, age = _checked(summaries)
        exponent = -np.log1p(-quantile) / (self.parameters_["r"] + x)
        with np.errstate(over="ignore"):
            return (self.parameters_["alpha"] + age) * np.expm1(exponent)


class BetaGeoModel(_PurchaseModel):
    """BG/NBD. Parameters r and alpha (a time) of the rates, a and b of the probability to leave after a
    purchase.
    """

    _names = ("r", "alpha", "a", "b")
    _times = (1,)

    def _starts(self, x: np.ndarray, age: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
        rate = max(float(weights @ x) / float(weights @ age), 1e-3)
        return [np.log([1.0, 1.0 / rate, 1.0, 3.0]), np.log([0.3, 0.3 / rate, 0.5, 5.0])]

    def _log_likelihood(
        self, parameters: np.ndarray, x: np.ndarray, recency: np.ndarray, age: np.ndarray
    ) -> np.ndarray:
        r, alpha, a, b = parameters
        shared = gammaln(r + x) - gammaln(r) + r * np.log(alpha) + betaln(a, b + x) - betaln(a, b)
        stayed = -(r + x) * np.log(alpha + age)
        # with x = 0 nobody can have left
        left = np.full(len(x), -np.inf)
        back = x > 0
        left[back] = np.log(a / (b + x[back] - 1)) - (r + x[back]) * np.log(alpha + recency[back])
        return shared + np.logaddexp(stayed, left)

    def _log_odds_gone(self, x: np.ndarray, recency: np.ndarray, age: np.ndarray) -> np.ndarray:
        r, alpha, a, b = self._values()
        odds = np.full(len(x), -np.inf)
        back = x > 0
        odds[back] = np.log(a / (b + x[back] - 1)) + (r + x[back]) * np.log(
            (alpha + age[back]) / (alpha + recency[back])
        )
        return odds

    def alive_probability(self, summaries: pl.DataFrame) -> np.ndarray:
        return expit(-self._log_odds_gone(*_checked(summaries)))

    def expected_purchases(self, summaries: pl.DataFrame, time: float | ArrayLike) -> np.ndarray:
        x, recency, age = _checked(summaries)
        times = _checked_time(time, len(x))
        alive = expit(-self._log_odds_gone(x, recency, age))
        return self._purchases_of_alive(x, age, times) * alive

    def expected_purchases_of_new(self, time: float | ArrayLike) -> np.ndarray:
        times = _checked_time(time, np.size(time))
        none = np.zeros(len(times))
        return self._purchases_of_alive(none, none, times)

    def _purchases_of_alive(self, x: np.ndarray, age: np.ndarray, times: np.ndarray) -> np.ndarray:
        """c (1 - q^(r + x) 2F1(r + x, b + x; c; z)) / (a - 1), with c = a + b + x - 1, q = 1 - z = (alpha + T)
        / (alpha + T + t).

        Euler's transformation makes that c (1 - q^(a - 1) 2F1(a - 1, a + b - 1 - r; c; z)) / (a - 1), whose
        first two parameters stay small however often a customer came. At a = 1 it is a limit, taken as the
        mean of both sides.
        """
        a = self.parameters_["a"]
        if abs(a - 1) < 1e-5:
            return (self._at(1 - 1e-5, x, age, times) + self._at(1 + 1e-5, x, age, times)) / 2
        return self._at(a, x, age, times)

    def _at(self, a: float, x: np.ndarray, age: np.ndarray, times: np.ndarray) -> np.ndarray:
        r, alpha, _, b = self._values()
        c = a + b + x - 1
        # at c = 0, of who never came back, it is a limit too; just beside it is near enough
        c = np.where(np.abs(c) < 1e-7, 1e-7, c)
        z = times / (alpha + age + times)
        log_q = np.log1p(-z)
        if a > 1 and a + b - 1 > r:
            left = np.exp((a - 1) * log_q + log_hyp2f1(a - 1, a + b - 1 - r, c, z))
        else:
            with np.errstate(all="ignore"):
                inner = hyp2f1(a - 1, a + b - 1 - r, c, z)
            if (broken := ~np.isfinite(inner)).any():
                inner[broken] = hyp2f1_series(a - 1, a + b - 1 - r, c[broken], z[broken])
            left = np.exp((a - 1) * log_q) * inner
        return c * (1 - left) / (a - 1)

    def simulate(self, ages: ArrayLike, seed: int) -> pl.DataFrame:
        r, alpha, a, b = self._values()
        random = np.random.default_rng(seed)
        age = np.asarray(ages, dtype=np.float64)
        n = len(age)
        rate = np.maximum(random.gamma(r, 1 / alpha, n), 1e-300)
        leaves = random.beta(a, b, n)
        x, recency, now = np.zeros(n, np.int64), np.zeros(n), np.zeros(n)
        active = np.ones(n, dtype=bool)
        alive = np.ones(n, dtype=bool)
        while active.any():
            now[active] += random.exponential(1 / rate[active])
            active &= now <= age
            x[active] += 1
            recency[active] = now[active]
            gone = active & (random.random(n) < leaves)
            alive[gone] = False
            active &= ~gone
        return pl.DataFrame({"frequency": x, "recency": recency, "age": age, "is_alive": alive, "rate": rate})


class ParetoModel(_PurchaseModel):
    """Pareto/NBD. Parameters r and alpha (a time) of the rates of purchase, s and beta (a time) of those of
    leaving.
    """

    _names = ("r", "alpha", "s", "beta")
    _times = (1, 3)

    def _starts(self, x: np.ndarray, age: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
        rate = max(float(weights @ x) / float(weights @ age), 1e-3)
        return [np.log([1.0, 1.0 / rate, 1.0, 1.0]), np.log([0.5, 0.5 / rate, 0.5, 0.5])]

    def _log_likelihood(
        self, parameters: np.ndarray, x: np.ndarray, recency: np.ndarray, age: np.ndarray
    ) -> np.ndarray:
        r, alpha, s, beta = parameters
        shared = gammaln(r + x) - gammaln(r) + r * np.log(alpha) + s * np.log(beta)
        stayed = -(r + x) * np.log(alpha + age) - s * np.log(beta + age)
        return shared + np.logaddexp(stayed, self._log_left(parameters, x, recency, age))

    @staticmethod
    def _log_left(parameters: np.ndarray, x: np.ndarray, recency: np.ndarray, age: np.ndarray) -> np.ndarray:
        """ln of s times the integral from t_x to T of (alpha + y)^-(r + x) (beta + y)^-(s + 1) dy."""
        r, alpha, s, beta = parameters
        total = r + s + x
        greater, other = (alpha, s + 1) if alpha >= beta else (beta, r + x)
        gap = abs(alpha - beta)

        def at(time: np.ndarray) -> np.ndarray:
            return log_hyp2f1(total, other, total + 1, gap / (greater + time)) - total * np.log(
                greater + time
            )

        early, late = at(recency), at(age)
        # who bought today cannot have left since
        since = np.minimum(late - early, 0.0)
        with np.errstate(divide="ignore"):
            return np.log(s / total) + early + np.log(-np.expm1(since))

    def alive_probability(self, summaries: pl.DataFrame) -> np.ndarray:
        x, recency, age = _checked(summaries)
        values = self._values()
        r, alpha, s, beta = values
        odds = (
            self._log_left(values, x, recency, age) + (r + x) * np.log(alpha + age) + s * np.log(beta + age)
        )
        return expit(-odds)

    def expected_purchases(self, summaries: pl.DataFrame, time: float | ArrayLike) -> np.ndarray:
        x, _, age = _checked(summaries)
        times = _checked_time(time, len(x))
        r, alpha, s, beta = self._values()
        return (
            (r + x)
            * (beta + age)
            / (alpha + age)
            * _shrunk(s - 1, np.log((beta + age) / (beta + age + times)))
            * self.alive_probability(summaries)
        )

    def expected_purchases_of_new(self, time: float | ArrayLike) -> np.ndarray:
        times = _checked_time(time, np.size(time))
        r, alpha, s, beta = self._values()
        return r * beta / alpha * _shrunk(s - 1, np.log(beta / (beta + times)))

    def simulate(self, ages: ArrayLike, seed: int) -> pl.DataFrame:
        r, alpha, s, beta = self._values()
        random = np.random.default_rng(seed)
        age = np.asarray(ages, dtype=np.float64)
        n = len(age)
        rate = random.gamma(r, 1 / alpha, n)
        lifetime = random.exponential(1 / np.maximum(random.gamma(s, 1 / beta, n), 1e-300))
        there = np.minimum(lifetime, age)
        x = random.poisson(rate * there)
        # the last of x times spread evenly is the largest
        recency = np.where(x > 0, there * random.random(n) ** (1 / np.maximum(x, 1)), 0.0)
        return pl.DataFrame(
            {"frequency": x, "recency": recency, "age": age, "is_alive": lifetime > age, "rate": rate}
        )


def _shrunk(exponent: float, log_q: np.ndarray) -> np.ndarray:
    """(1 - q^exponent) / exponent, and -ln q where the exponent is 0."""
    if abs(exponent) < 1e-12:
        return -log_q
    return -np.expm1(exponent * log_q) / exponent


def _checked_time(time: float | ArrayLike, n: int) -> np.ndarray:
    times = np.broadcast_to(np.asarray(time, dtype=np.float64), (n,)).copy()
    if not np.isfinite(times).all() or (times < 0).any():
        raise ValueError("time must be at least 0")
    return times


class GammaGammaModel(BaseEstimator):
    """What a purchase is worth on average, for each customer; it takes for granted that it does not go with
    how often they buy.

    Attributes:
        parameters_: p, q and gamma (in units of money).
        log_likelihood_: of the customers learnt from.
        correlation_: of frequency and mean value among them (Pearson); far from 0, the model's premise does
            not hold.
    """

    def fit(self, summaries: pl.DataFrame, y: None = None) -> GammaGammaModel:  # noqa: ARG002
        """Learn from who came back and spent something.

        Args:
            summaries: frequency and monetary_value, a row a customer; others are left out.
            y: not used; for scikit-learn's sake.

        Raises:
            ValueError: a column is missing or not finite.
            NotEnoughData: fewer than ten customers came back and spent something, or all spend the same.
        """
        x, mean = _checked_values(summaries)
        used = (x > 0) & (mean > 0)
        x, mean = x[used], mean[used]
        if len(x) < MIN_REPEATERS:
            raise NotEnoughData(
                f"not enough data: {len(x)} customers came back and spent something; {MIN_REPEATERS} are needed"
            )
        if np.ptp(mean) <= 1e-9 * mean.mean():
            raise NotEnoughData("not enough data: all customers spend the same")
        scale = float(mean.mean())
        scaled = mean / scale

        def loss(logs: np.ndarray) -> float:
            total = float(self._log_likelihood(np.exp(logs), x, scaled).mean())
            return -total if np.isfinite(total) else 1e10

        bounds = [(-_BOUND, _SHAPE_BOUND), (-_BOUND, _SHAPE_BOUND), (-_BOUND, _BOUND)]
        found = min(
            (
                minimize(
                    loss,
                    minimize(loss, start, method="L-BFGS-B", bounds=bounds).x,
                    method="Nelder-Mead",
                    bounds=bounds,
                    options={"xatol": 1e-6, "fatol": 1e-11, "maxiter": 2_000},
                )
                for start in np.log([[2.0, 3.0, 1.0], [6.0, 4.0, 0.5]])
            ),
            key=_loss,
        )
        p, q, gamma = np.exp(found.x)
        self.parameters_ = {"p": float(p), "q": float(q), "gamma": float(gamma * scale)}
        self.log_likelihood_ = float(-found.fun * len(x) - len(x) * np.log(scale))
        self.correlation_ = float(np.corrcoef(x, mean)[0, 1]) if np.ptp(x) > 0 else 0.0
        return self

    @staticmethod
    def _log_likelihood(parameters: np.ndarray, x: np.ndarray, mean: np.ndarray) -> np.ndarray:
        p, q, gamma = parameters
        return (
            gammaln(p * x + q)
            - gammaln(p * x)
            - gammaln(q)
            + q * np.log(gamma)
            + (p * x - 1) * np.log(mean)
            + p * x * np.log(x)
            - (p * x + q) * np.log(gamma + x * mean)
        )

    @property
    def population_mean(self) -> float:
        """Mean value of a purchase of somebody we know nothing of: p gamma / (q - 1); infinite if q <= 1."""
        check_is_fitted(self, "parameters_")
        p, q, gamma = self.parameters_["p"], self.parameters_["q"], self.parameters_["gamma"]
        return p * gamma / (q - 1) if q > 1 else float("inf")

    def expected_value(self, summaries: pl.DataFrame) -> np.ndarray:
        """(n,) expected mean value of a purchase: the customer's own, drawn towards everybody's.

        p (gamma + x m) / (p x + q - 1). Where q <= 1 the mean of everybody is not finite, and neither is that
        of who never came back.
        """
        check_is_fitted(self, "parameters_")
        x, mean = _checked_values(summaries)
        p, q, gamma = self.parameters_["p"], self.parameters_["q"], self.parameters_["gamma"]
        below = p * x + q - 1
        with np.errstate(divide="ignore"):
            return np.where(below > 0, p * (gamma + x * mean) / np.where(below > 0, below, 1), np.inf)

    def simulate(self, frequencies: ArrayLike, seed: int) -> pl.DataFrame:
        """Customers of this model who came back so often: frequency and monetary_value."""
        check_is_fitted(self, "parameters_")
        p, q, gamma = self.parameters_["p"], self.parameters_["q"], self.parameters_["gamma"]
        random = np.random.default_rng(seed)
        x = np.asarray(frequencies, dtype=np.int64)
        nu = random.gamma(q, 1 / gamma, len(x))
        mean = np.where(x > 0, random.gamma(p * np.maximum(x, 1), 1 / (nu * np.maximum(x, 1))), 0.0)
        return pl.DataFrame({"frequency": x, "monetary_value": mean})


def _checked_values(summaries: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    missing = [name for name in ("frequency", "monetary_value") if name not in summaries.columns]
    if missing:
        raise ValueError(f"summaries lack {', '.join(missing)}; they need frequency, monetary_value")
    frame = summaries.select(pl.col("frequency", "monetary_value").cast(pl.Float64))
    if any(frame.null_count().row(0)) or not all(frame[name].is_finite().all() for name in frame.columns):
        raise ValueError("summaries: frequency and monetary_value must be numbers in every row")
    return frame["frequency"].to_numpy(), frame["monetary_value"].to_numpy()


def discounted_value(
    purchases: _PurchaseModel,
    values: GammaGammaModel,
    summaries: pl.DataFrame,
    *,
    horizon: float,
    steps: int = 12,
    yearly_discount: float = 0.1,
    units_a_year: float = 365.0,
    margin: float = 1.0,
) -> np.ndarray:
    """(n,) expected value of what customers will buy within a horizon from now, in today's money.

    The horizon is cut into steps; what is to be expected within a step is discounted from its middle:
    sum_i (E[X(t_i)] - E[X(t_(i-1))]) E[M] margin / (1 + yearly_discount)^(middle_i / units_a_year).

    Args:
        purchases: a fitted model of how often they buy.
        values: a fitted model of what a purchase is worth.
        summaries: frequency, recency, age and monetary_value.
        horizon: in the summaries' unit of time, above 0.
        steps: how finely to discount, at least 1.
        yearly_discount: what money loses in a year, 0 for not at all.
        units_a_year: units of time that make a year, 52.18 for weeks.
        margin: share of the value to count, above 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not (horizon > 0 and steps >= 1 and yearly_discount > -1 and units_a_year > 0 and margin > 0):
        raise ValueError(
            "horizon, units_a_year and margin must be above 0, steps at least 1, the discount above -1"
        )
    total = np.zeros(summaries.height)
    before = np.zeros(summaries.height)
    for step in range(1, steps + 1):
        expected = purchases.expected_purchases(summaries, horizon * step / steps)
        middle = horizon * (step - 0.5) / steps / units_a_year
        total += (expected - before) / (1 + yearly_discount) ** middle
        before = expected
    return total * values.expected_value(summaries) * margin


__all__ = [
    "SUMMARY_COLUMNS",
    "BetaGeoModel",
    "GammaGammaModel",
    "ParetoModel",
    "discounted_value",
    "purchase_summaries",
]
