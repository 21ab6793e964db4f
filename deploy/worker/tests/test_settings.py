"""The environment, checked."""

from __future__ import annotations

import pytest

from pointsman_worker.infrastructure.settings import Address, BadSettings, Consul, read


def test_the_name_of_the_model_is_enough() -> None:
    told = read({"MODEL_NAME": "demo"})
    assert (told.backend, told.concurrency, told.queue, told.drain_seconds) == ("echo", 16, 64, 30)
    assert told.listen == Address("0.0.0.0", 50055)
    assert told.http == (Address("0.0.0.0", 9464),)
    assert told.consul is None
    assert told.advertise is None
    assert told.openai.model == told.local.path == "demo"
    assert told.instance_id != read({"MODEL_NAME": "demo"}).instance_id


def test_all_of_it_can_be_told_and_an_empty_variable_is_none() -> None:
    told = read(
        {
            "MODEL_NAME": "demo",
            "BACKEND": "OpenAI",
            "LISTEN_ADDR": "[::1]:1",
            "HEALTH_ADDR": "127.0.0.1:2",
            "METRICS_ADDR": ":3",
            "OPENAI_BASE_URL": "http://127.0.0.1:8000/v1/",
            "OPENAI_MODEL": "",
            "CONSUL_HTTP_ADDR": "consul:8500",
            "CONSUL_HTTP_TOKEN": "t",
            "ADVERTISE_ADDR": "worker-1:50055",
            "DRAIN_SECONDS": "2.5",
            "TOKEN_DELAY_MS": "20",
            "BACKEND_ARGS": '{"dtype": "auto"}',
        }
    )
    assert told.backend == "openai"
    assert str(told.listen) == "[::1]:1"
    assert told.http == (Address("127.0.0.1", 2), Address("0.0.0.0", 3))
    assert told.openai.base_url == "http://127.0.0.1:8000/v1"
    assert told.openai.model == "demo"
    assert told.consul is not None
    assert told.consul.url == "http://consul:8500"
    assert (told.drain_seconds, told.token_delay) == (2.5, 0.02)
    assert told.local.args == {"dtype": "auto"}


@pytest.mark.parametrize("both", [{"HEALTH_ADDR": ":5"}, {"HEALTH_ADDR": ":5", "METRICS_ADDR": "0.0.0.0:5"}])
def test_one_port_serves_health_and_metrics_where_no_other_is_told(both: dict[str, str]) -> None:
    assert read({"MODEL_NAME": "demo", **both}).http == (Address("0.0.0.0", 5),)


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("MODEL_NAME", "", "give the name"),
        ("MODEL_NAME", "x" * 201, "200"),
        ("MODEL_NAME", "a\x00b", "printable"),
        ("BACKEND", "gpt", "echo, hash, openai, vllm, transformers"),
        ("LISTEN_ADDR", "50055", "HOST:PORT"),
        ("LISTEN_ADDR", "host:65536", "HOST:PORT"),
        ("LISTEN_ADDR", "host:²", "HOST:PORT"),
        ("METRICS_ADDR", "host:", "HOST:PORT"),
        ("CONCURRENCY", "0", "from 1 to"),
        ("CONCURRENCY", "many", "whole number"),
        ("QUEUE", "-1", "from 0 to"),
        ("DRAIN_SECONDS", "nan", "number"),
        ("DRAIN_SECONDS", "inf", "number"),
        ("OPENAI_BASE_URL", "localhost:8000", "http://"),
        ("OPENAI_BASE_URL", "http://user:pw@host", "without credentials"),
        ("OPENAI_BASE_URL", "http://host:99999", "Port"),
        ("OPENAI_API_KEY", "a\nb", "ASCII"),
        ("OPENAI_CONTINUES", "x" * 201, "200"),
        ("CONSUL_HTTP_ADDR", "unix:///run/consul.sock", "http://"),
        ("CONSUL_CACERT", "a\x00b", "printable"),
        ("INSTANCE_ID", "a b", "A-Z"),
        ("ADVERTISE_ADDR", "0.0.0.0:50055", "they reach"),
        ("BACKEND_ARGS", "[1]", "JSON object"),
        ("LOG_LEVEL", "loud", "debug"),
        ("LOG_FORMAT", "xml", "json"),
    ],
)
def test_a_bad_value_is_named_with_what_to_do(name: str, value: str, advice: str) -> None:
    with pytest.raises(BadSettings) as found:
        read({"MODEL_NAME": "demo", name: value})
    assert str(found.value).startswith(f"{name}: ")
    assert advice in str(found.value)
    assert "\n" not in str(found.value)


def test_consul_over_tls_has_an_authority_and_a_certificate_has_its_key() -> None:
    told = {"MODEL_NAME": "m", "CONSUL_HTTP_ADDR": "https://c:8501", "CONSUL_CACERT": "ca.pem"}
    both = {"CONSUL_CLIENT_CERT": "c.pem", "CONSUL_CLIENT_KEY": "k.pem"}
    assert read({**told, **both}).consul == Consul("https://c:8501", "", "ca.pem", "c.pem", "k.pem")
    for name, other in (("CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY"), ("CONSUL_CLIENT_KEY", "CONSUL_CLIENT_CERT")):
        with pytest.raises(BadSettings, match=f"{name}: goes with {other}"):
            read({**told, name: "x.pem"})


def test_a_bad_secret_is_not_quoted() -> None:
    for name in ("OPENAI_API_KEY", "CONSUL_HTTP_TOKEN"):
        with pytest.raises(BadSettings) as found:
            read({"MODEL_NAME": "demo", name: "hush\nhush"})
        assert "hush" not in str(found.value)
