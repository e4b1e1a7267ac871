"""No password survives masking, and nothing else is touched."""

from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.credentials import masked

NAMES = st.text("abcdefgh-_.", min_size=1, max_size=8)
PASSWORDS = st.text(min_size=1, max_size=12).map(lambda text: "ZZ" + quote(text, safe="@:!$*+,;=") + "ZZ")


@settings(max_examples=30)
@given(st.sampled_from(["http", "https", "postgresql", "postgresql+psycopg2", "mysql"]), NAMES, PASSWORDS, NAMES)
def test_a_password_in_an_address_is_hidden(scheme, user, password, host):
    address = f"{scheme}://{user}:{password}@{host}:5000/some/path?a=b"
    found = masked(f'{{"uri": "{address}", "other": "x@y.z: 12:30"}} and again {address}')
    assert "ZZ" not in found
    assert found.count(f"***@{host}:5000/some/path?a=b") == 2 and '"other": "x@y.z: 12:30"' in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://token@host/x", "https://***@host/x"),
        (
            "postgresql://me@host/db?password=secret&sslmode=require",
            "postgresql://me@host/db?password=***&sslmode=require",
        ),
        ("dsn: host=h user=u password=secret", "dsn: host=h user=u password=***"),
    ],
)
def test_other_places_of_credentials(text, expected):
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    ["sqlite:///mlruns/mlflow.db", "http://127.0.0.1:5000/#/experiments/1?a='b'", "postgresql://me@host/db", "me@host"],
)
def test_an_address_without_credentials_is_left_alone(text):
    assert masked(text) == text
