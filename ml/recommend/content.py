"""What products are like, by their names and attributes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from ml.recommend.topk import largest_of_rows

_WORD = re.compile(r"[^\W_]{2,}")
_BLOCK = 1024
_QUANTILES = 10


def validated_catalogue(catalogue: pl.DataFrame) -> pl.DataFrame:
    """The catalogue, product_id as text.

    Raises:
        ValueError: product_id is missing, null or not unique, or a column is of a type that says nothing.
    """
    if "product_id" not in catalogue.columns:
        raise ValueError("a catalogue needs a column product_id")
    catalogue = catalogue.with_columns(pl.col("product_id").cast(pl.String))
    if catalogue["product_id"].null_count() or catalogue["product_id"].is_duplicated().any():
        raise ValueError("catalogue: product_id must be there and unique")
    for name, kind in catalogue.schema.items():
        is_text = kind in (pl.String, pl.Categorical, pl.Enum) or kind == pl.List(pl.String)
        if not (is_text or kind == pl.Boolean or kind.is_numeric() or kind == pl.Null):
            raise ValueError(f"catalogue: {name} is {kind}; describe products by texts, numbers and booleans")
    return catalogue


def descriptions(catalogue: pl.DataFrame) -> list[list[str]]:
    """What is said of each product, a list of terms.

    Words of `name` in lower case. Of any other column `column=value`; numbers by tenths of the catalogue
    (`price=3`, the fourth tenth), lists a term an element. Nulls and NaN say nothing.
    """
    terms: list[list[str]] = [[] for _ in range(catalogue.height)]
    for column in catalogue.columns:
        values = catalogue[column]
        if column == "product_id" or values.dtype == pl.Null:
            continue
        if values.dtype.is_numeric():
            numbers = values.cast(pl.Float64)
            numbers = numbers.set(~numbers.is_finite(), None)
            edges = np.quantile(numbers.drop_nulls().to_numpy(), np.arange(1, _QUANTILES) / _QUANTILES) if (
                numbers.null_count() < len(numbers)
            ) else np.zeros(0)  # fmt: skip
            tenths = np.searchsorted(edges, numbers.fill_null(0.0).to_numpy(), side="right")
            said = [
                [] if is_null else [f"{column}={tenth}"]
                for tenth, is_null in zip(tenths.tolist(), numbers.is_null().to_list(), strict=True)
            ]
        elif isinstance(values.dtype, pl.List):
            said = [[f"{column}={one}" for one in many or () if one] for many in values.to_list()]
        elif column == "name":
            said = [_WORD.findall((text or "").lower()) for text in values.cast(pl.String).to_list()]
        else:
            said = [[f"{column}={one}"] if one else [] for one in values.cast(pl.String).to_list()]
        for mine, more in zip(terms, said, strict=True):
            mine.extend(more)
    return terms


def content_vectors(catalogue: pl.DataFrame, product_ids: np.ndarray) -> sparse.csr_matrix:
    """(n_products, n_terms) CSR float32 TF-IDF of each product's terms, of length 1; empty where nothing is said.

    Weights are scikit-learn's: (1 + ln tf) * (ln((1 + n) / (1 + df)) + 1).

    Args:
        catalogue: see `validated_catalogue`.
        product_ids: the products, in the order of the rows wanted.
    """
    ordered = pl.DataFrame({"product_id": pl.Series(product_ids, dtype=pl.String)}).join(
        catalogue, on="product_id", how="left", maintain_order="left"
    )
    terms = descriptions(ordered)
    if not any(terms):
        return sparse.csr_matrix((len(product_ids), 0), dtype=np.float32)
    options: Any = {"analyzer": _as_it_is, "dtype": np.float32}
    return sparse.csr_matrix(TfidfVectorizer(sublinear_tf=True, **options).fit_transform(terms))


def _as_it_is(terms: list[str]) -> list[str]:
    return terms


def nearest_of_vectors(vectors: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """(n, n) CSR float32 cosines of each row's `count` nearest others, a block of rows at a time."""
    n = int(vectors.shape[0])  # pyright: ignore[reportOptionalSubscript]
    transposed = vectors.T.tocsr()
    blocks = []
    for first in range(0, n, _BLOCK):
        alike: Any = sparse.csr_matrix(vectors[first : first + _BLOCK] @ transposed)
        row = np.repeat(np.arange(alike.shape[0]), np.diff(alike.indptr))
        alike.data[alike.indices == first + row] = 0.0
        blocks.append(largest_of_rows(alike, count))
    if not blocks:
        return sparse.csr_matrix((0, 0), dtype=np.float32)
    return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))


def categories_of(catalogue: pl.DataFrame, product_ids: np.ndarray) -> np.ndarray:
    """(n_products,) number of each product's category, -1 for none or if the catalogue has no column category."""
    if "category" not in catalogue.columns:
        return np.full(len(product_ids), -1)
    ordered = pl.DataFrame({"product_id": pl.Series(product_ids, dtype=pl.String)}).join(
        catalogue.select("product_id", pl.col("category").cast(pl.String)),
        on="product_id", how="left", maintain_order="left",
    )["category"]  # fmt: skip
    names = ordered.drop_nulls().unique().sort()
    codes = names.search_sorted(ordered.fill_null("")).to_numpy().astype(np.int64)
    return np.where(ordered.is_null().to_numpy(), -1, codes)
