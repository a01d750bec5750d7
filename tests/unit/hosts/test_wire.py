"""The lines between the controller and the hosts."""

from __future__ import annotations

import pytest

from launcher.hosts.connection.order import Order, order_from, order_line
from launcher.hosts.connection.wire import BadLine, line, parse

ORDER = Order(
    token="/runs/a",
    attempt="1",
    host="n1",
    stage="sft",
    node=0,
    slots=2,
    argv=("x", ""),
    env={"A": "b"},
    cwd="/",
    others=("n2",),
)
HOSTILE = ['a "b" $HOME `id` \\ ; & | %n', "two\nlines\r\n", "", "ä\u2028\x00\x7f", "*", "-oProxyCommand=id"]


@pytest.mark.parametrize("value", HOSTILE)
def test_every_value_arrives_as_it_is_in_one_line(value):
    order = Order(**{**{name: getattr(ORDER, name) for name in ORDER.__slots__}, "argv": (value,), "env": {"NAME": value}})
    text = order_line(order)
    assert text.count(b"\n") == 1
    assert order_from(parse(text)) == order


def test_an_order_shows_none_of_its_environment():
    assert "secret" not in repr(Order(**{**{name: getattr(ORDER, name) for name in ORDER.__slots__}, "env": {"T": "secret"}}))


@pytest.mark.parametrize("text", [b"Welcome to node1!\n", b"[1]\n", b"\n", b"\xff\xfe\n", b'{"a": \n'])
def test_what_is_no_message_is_told(text):
    with pytest.raises(BadLine):
        parse(text)


@pytest.mark.parametrize("change", [{"slots": "two"}, {"argv": None}, {"env": {"A": 1}}])
def test_an_order_of_another_version_is_refused(change):
    with pytest.raises(BadLine, match="another version"):
        order_from(parse(line({**parse(order_line(ORDER)), **change})))
