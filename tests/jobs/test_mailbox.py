"""Messages of workers reach the driver on a real Ray."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from speechclip.jobs import cluster
from speechclip.jobs.mailbox import Mailbox, flush, post

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    cluster._protect()
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def post_from_worker(messages: Any, count: int) -> None:
    """A worker posts so many messages, waits until they have arrived, and ends."""

    @ray.remote
    def work(messages: Any) -> None:
        for number in range(count):
            post(messages, b"%d" % number)
        flush(messages)

    ray.get(work.remote(messages))


def test_all_messages_arrive_in_order_before_the_mailbox_closes() -> None:
    found: list[bytes] = []
    with Mailbox(found.append) as messages:
        post_from_worker(messages, 500)
    assert found == [b"%d" % number for number in range(500)]


def refuse(message: bytes) -> None:
    raise ZeroDivisionError(message.decode())


def test_an_error_of_the_reader_is_raised_when_the_mailbox_closes() -> None:
    with pytest.raises(ZeroDivisionError, match="0"), Mailbox(refuse) as messages:
        post_from_worker(messages, 1)


def test_an_error_of_the_driver_is_raised_and_not_that_of_the_reader() -> None:
    def drive() -> None:
        with Mailbox(refuse) as messages:
            post_from_worker(messages, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive()


def test_a_message_to_a_closed_mailbox_does_not_stop_a_worker() -> None:
    with Mailbox(refuse) as messages:
        pass
    post_from_worker(messages, 1)
