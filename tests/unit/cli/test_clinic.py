"""The clinic of the demo: takes referrals, is down at first for one clinic, knows no others."""

from __future__ import annotations

from http import HTTPStatus

import httpx
import pytest

from dispatcher.cli.clinic import Clinic


@pytest.fixture
def clinic():
    with Clinic() as clinic:
        yield clinic


def refer(clinic, name, key="k1"):
    with httpx.Client(trust_env=False) as client:
        reply = client.post(
            f"{clinic.url}/clinics/{name}/referrals", json={"reason": "x"}, headers={"Idempotency-Key": key}
        )
    return HTTPStatus(reply.status_code)


def test_a_referral_is_counted_once_whatever_the_number_of_calls(clinic):
    assert [refer(clinic, "umlazi"), refer(clinic, "umlazi"), refer(clinic, "umlazi", "k2")] == [HTTPStatus.CREATED] * 3
    assert clinic.referrals == 2


def test_the_unreliable_clinic_is_down_twice(clinic):
    replies = [refer(clinic, "gugulethu") for _ in range(3)]
    assert replies == [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.CREATED]
    assert clinic.refusals == 2


def test_a_clinic_that_does_not_exist_is_not_found(clinic):
    assert refer(clinic, "nowhere") == HTTPStatus.NOT_FOUND
