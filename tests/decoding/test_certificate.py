"""The certificate, on cases made by hand."""

import json

import pytest

from xmsd_jax.decoding.certificate import certify, compare, not_applicable, tie_margin

REFERENCE = [5, 6, 7, 2]
TOPS = [10.0, 10.0, 3.0, 10.0]  # at 3.0 one bf16 ulp is 2**-6


def verdict(ids, margin: float, dtype="float32") -> str:
    return compare(REFERENCE, ids, dtype=dtype, margins=[9.0, 9.0, margin, 9.0], top_logits=TOPS).verdict


def test_equal_text_needs_no_margin():
    comparison = compare(REFERENCE, REFERENCE, dtype="float32")
    assert (comparison.verdict, comparison.position) == ("equal", None)


@pytest.mark.parametrize(
    ("dtype", "top", "margin"),
    [
        ("float32", 12.0, 1e-4),
        ("bfloat16", 1.0, 2 * 2**-7),
        ("bfloat16", 1.99, 2 * 2**-7),
        ("bfloat16", 2.0, 2 * 2**-6),
        ("bfloat16", -12.5, 2 * 2**-4),
        ("bfloat16", 0.25, 2 * 2**-9),
        ("bfloat16", 0.0, 2 * 2**-133),
    ],
)
def test_a_tie_is_two_ulp_in_bf16_and_one_ten_thousandth_in_fp32(dtype, top, margin):
    assert tie_margin(dtype, top) == margin


@pytest.mark.parametrize(
    ("dtype", "margin", "expected"),
    [
        ("float32", 1e-4, "tie"),
        ("float32", 1.01e-4, "divergence"),
        ("bfloat16", 2**-5, "tie"),
        ("bfloat16", 2**-5 * 1.01, "divergence"),
        ("float32", float("nan"), "divergence"),
    ],
)
def test_the_margin_at_the_first_difference_decides(dtype, margin, expected):
    assert verdict([5, 6, 8, 9, 9, 2], margin, dtype) == expected


def test_only_the_first_difference_is_judged():
    comparison = compare(REFERENCE, [5, 9, 9, 9], dtype="float32", margins=[9.0, 0.0, 9.0, 9.0], top_logits=TOPS)
    assert (comparison.verdict, comparison.position, comparison.expected, comparison.got) == ("tie", 1, 6, 9)


@pytest.mark.parametrize("ids", [[5, 6, 7], [5, 6, 7, 2, 5], []])
def test_a_text_that_ends_elsewhere_is_never_a_tie(ids):
    comparison = compare(REFERENCE, ids, dtype="float32", margins=[0.0] * 4, top_logits=TOPS)
    assert comparison.verdict == "divergence"
    assert comparison.position == min(len(ids), 4)


def test_a_difference_without_known_margin_is_a_divergence():
    assert compare(REFERENCE, [5, 6, 8, 2], dtype="float32").verdict == "divergence"


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="float32 and bfloat16, got 'float16'"):
        tie_margin("float16", 1.0)


def test_ties_are_listed_and_pass_and_one_divergence_fails():
    equal = compare(REFERENCE, REFERENCE, dtype="float32", answer="a")
    tie = compare(REFERENCE, [9], dtype="float32", margins=[0.0] * 4, top_logits=TOPS, answer="b")
    divergence = compare(REFERENCE, [9], dtype="float32", answer="c")

    passed = certify([equal, tie, equal])
    assert (passed.status, passed.answers, passed.equal, passed.ties) == ("passed", 3, 2, (tie,))
    failed = certify([equal, tie, divergence])
    assert (failed.status, failed.divergences) == ("failed", (divergence,))

    written = json.loads(json.dumps(failed.to_json()))
    assert (written["status"], written["tie_count"], written["divergence_count"]) == ("failed", 1, 1)
    assert written["divergences"][0]["answer"] == "c"


def test_a_certificate_over_nothing_fails():
    assert certify([]).status == "failed"


def test_replayed_rows_have_none():
    certificate = not_applicable("imposed acceptance")
    assert certificate.status == "not applicable"
    assert certificate.to_json()["reason"] == "imposed acceptance"
