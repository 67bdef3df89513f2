"""The code of format.md ("Code") written down a second time, slowly, from its definition alone: no zfec, no tables.

GF(2^8) by shift and reduce with 0x11d; V: row 0 is 1,0,…,0, row r ≥ 1 is α^((r−1)·c); G = V · (first k rows)^−1.
Run as a program it prints the known answers of `raidd.codec.erasure`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

POLYNOMIAL = 0x11D


@lru_cache(maxsize=1 << 16)
def multiply(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= POLYNOMIAL
        b >>= 1
    return product


def power(base: int, exponent: int) -> int:
    result = 1
    for _ in range(exponent):
        result = multiply(result, base)
    return result


def inverse(a: int) -> int:
    return power(a, 254)


def matrix_product(left: list[list[int]], right: list[list[int]]) -> list[list[int]]:
    columns = list(zip(*right, strict=True))
    return [[dot(row, column) for column in columns] for row in left]


def dot(row: Sequence[int], column: Sequence[int]) -> int:
    total = 0
    for a, b in zip(row, column, strict=True):
        total ^= multiply(a, b)
    return total


def matrix_inverse(matrix: list[list[int]]) -> list[list[int]]:
    """Gauss and Jordan."""
    size = len(matrix)
    rows = [list(row) + [int(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(r for r in range(column, size) if rows[r][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        scale = inverse(rows[column][column])
        rows[column] = [multiply(scale, value) for value in rows[column]]
        for r in range(size):
            if r != column and (factor := rows[r][column]):
                rows[r] = [a ^ multiply(factor, b) for a, b in zip(rows[r], rows[column], strict=True)]
    return [row[size:] for row in rows]


@lru_cache(maxsize=64)
def generator(k: int, n: int) -> tuple[tuple[int, ...], ...]:
    """G, n rows of k coefficients."""
    vandermonde = [[int(c == 0) for c in range(k)]]
    vandermonde += [[power(power(2, r - 1), c) for c in range(k)] for r in range(1, n)]
    return tuple(tuple(row) for row in matrix_product(vandermonde, matrix_inverse(vandermonde[:k])))


def combine(row: Sequence[int], data: Sequence[bytes]) -> bytes:
    return bytes(dot(row, column) for column in zip(*data, strict=True))


def encode(k: int, m: int, data: Sequence[bytes]) -> list[bytes]:
    return [combine(row, data) for row in generator(k, k + m)[k:]]


def self_test_data(k: int) -> list[bytes]:
    """As the self-test makes it: every byte value once in each piece, in another order for each."""
    return [bytes((byte * (2 * piece + 1) + piece) & 0xFF for byte in range(256)) for piece in range(k)]


def known_answer(k: int) -> str:
    return hashlib.sha256(b"".join(encode(k, 32 - k, self_test_data(k)))).hexdigest()[:16]


if __name__ == "__main__":
    for k in range(1, 32):
        print(f'    {k}: "{known_answer(k)}",')
