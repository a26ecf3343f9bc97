"""`CUTE_ATTN_LOG` names what is printed."""

import logging

import pytest

from cute_attn import log


@pytest.fixture(autouse=True)
def quiet():
    yield
    for topic in log.TOPICS:
        logger = logging.getLogger(f"cute_attn.{topic}")
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)


def test_the_named_topics_are_printed_on_stderr_and_no_others(capsys):
    log.show("cache, copy")
    log.show("cache")
    for topic in log.TOPICS:
        logging.getLogger(f"cute_attn.{topic}").info("said by %s", topic)
    assert capsys.readouterr().err == "cute_attn.cache: said by cache\ncute_attn.copy: said by copy\n"


def test_an_unknown_topic_is_refused():
    with pytest.raises(ValueError, match="CUTE_ATTN_LOG must be a comma list of compile, cache, plan, copy, got 'all'"):
        log.show("all")
