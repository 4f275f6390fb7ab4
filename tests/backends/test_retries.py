"""Retries, on a clock of the test's own."""

import hashlib
import pickle
import threading

import attrs
import pytest

from amistore import (
    AccessDeniedError,
    AlreadyExistsError,
    BackendError,
    BlockDeviceMapping,
    ChecksumMismatchError,
    EbsBlockDevice,
    Image,
    MemoryBackend,
    NotFoundError,
    StorageFullError,
    ThrottledError,
)
from amistore.backends import Backend, BlockStore, Forwarding, ImageRegistry, ObjectStore, SnapshotBlock
from amistore.backends.retries import Retrier, RetryPolicy
from amistore.backends.retrying import RetryingBackend
from amistore.testing import (
    BlockStoreContract,
    BucketCase,
    FaultyBackend,
    ImageRegistryContract,
    ObjectStoreContract,
    RegistryCase,
    block,
    read_snapshot,
    store_snapshot,
)


@attrs.define
class Clock:
    """Time that goes on only where someone sleeps."""

    now: float = 1000.0
    sleeps: list = attrs.field(factory=list)

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds

    def retrier(self, draw=lambda: 1.0, **limits):
        return Retrier(RetryPolicy(**limits), clock=lambda: self.now, sleep=self.sleep, draw=draw)


class Failing:
    """Raises these errors one by one, then gives "done"."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def clock():
    return Clock()


def transient():
    return BackendError("try again", retryable=True)


def test_a_passing_error_is_tried_again_after_growing_pauses(clock):
    call = Failing(*(transient() for _ in range(4)))
    assert clock.retrier().call("lane", call) == "done"
    assert clock.sleeps == [0.1, 0.2, 0.4, 0.8]


def test_pauses_are_drawn_between_nothing_and_their_bound(clock):
    draws = iter([0.0, 0.25, 0.5, 1.0])
    retrier = clock.retrier(draw=lambda: next(draws))
    retrier.call("lane", Failing(*(transient() for _ in range(4))))
    assert clock.sleeps == [0.0, 0.05, 0.2, 0.8]


def test_no_pause_is_above_the_greatest(clock):
    retrier = clock.retrier(attempts=12, max_delay=3.0)
    retrier.call("lane", Failing(*(transient() for _ in range(11))))
    assert max(clock.sleeps) == 3.0


def test_the_last_attempts_error_is_raised_and_tells_their_number(clock):
    call = Failing(*(transient() for _ in range(9)))
    with pytest.raises(BackendError, match="attempts 5") as caught:
        clock.retrier().call("lane", call)
    assert (caught.value.attempts, call.calls) == (5, 5)


@pytest.mark.parametrize("error", [AccessDeniedError, NotFoundError, AlreadyExistsError, BackendError])
def test_a_permanent_error_is_raised_at_once(clock, error):
    call = Failing(error("no"))
    with pytest.raises(error):
        clock.retrier().call("lane", call)
    assert (call.calls, clock.sleeps) == (1, [])


def test_an_error_of_the_program_is_not_hidden_by_retries(clock):
    call = Failing(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        clock.retrier().call("lane", call)
    assert call.calls == 1


def test_no_attempt_begins_after_the_time_limit(clock):
    def slow():
        clock.now += 50
        raise transient()

    with pytest.raises(BackendError, match="attempts 3"):
        clock.retrier(attempts=100).call("lane", slow)


def test_a_service_that_is_down_is_not_stormed(clock):
    retrier = clock.retrier(budget=100)
    calls = 0
    for _ in range(50):
        call = Failing(*(transient() for _ in range(9)))
        with pytest.raises(BackendError):
            retrier.call("lane", call)
        calls += call.calls
    assert calls == 50 + 100 // 5  # each call once, and the retries that the budget pays for


def test_success_earns_retries_back(clock):
    retrier = clock.retrier(budget=10)
    for _ in range(2):
        retrier.call("lane", Failing(transient()))
    with pytest.raises(BackendError, match="attempts 1"):
        retrier.call("lane", Failing(transient()))
    for _ in range(5):
        retrier.call("lane", Failing())
    assert retrier.call("lane", Failing(transient())) == "done"


def test_throttling_slows_the_other_calls_of_its_snapshot_and_no_others(clock):
    retrier = clock.retrier()
    retrier.call("snap-1", Failing(ThrottledError("slow down", retryable=True)))
    clock.sleeps.clear()
    retrier.call("snap-2", Failing())
    assert clock.sleeps == []
    for _ in range(3):
        retrier.call("snap-1", Failing())
    assert len(clock.sleeps) == 3
    assert all(0 < pause <= 0.002 for pause in clock.sleeps)


def test_a_service_that_goes_on_throttling_is_asked_less_often_and_success_narrows_the_spacing(clock):
    retrier = clock.retrier(attempts=20, base_delay=0.6, max_delay=0.6)
    retrier.call("lane", Failing(*(ThrottledError("slow down", retryable=True) for _ in range(8))))
    clock.sleeps.clear()
    for _ in range(300):
        retrier.call("lane", Failing())
    assert clock.sleeps[0] == pytest.approx(1 / 10)  # that often it is asked all the same
    assert clock.sleeps[1:] == sorted(clock.sleeps[1:], reverse=True)
    assert clock.sleeps[-1] < 0.05


def test_a_throttled_worker_holds_back_those_that_are_about_to_call(clock):
    """All workers of a snapshot wait as long as the one that was throttled."""
    retrier = clock.retrier(base_delay=4.0)
    call = Failing(ThrottledError("slow down", retryable=True))
    waited = []

    def sleep(seconds):
        if not waited:  # another worker calls while the throttled one sleeps
            waited.append(seconds)
            retrier.call("lane", Failing())
        clock.sleep(seconds)

    retrier._sleep = sleep
    retrier.call("lane", call)
    assert clock.sleeps[0] == pytest.approx(4.0)


def test_a_retrier_that_went_to_another_process_keeps_its_policy():
    policy = RetryPolicy(attempts=2)
    assert pickle.loads(pickle.dumps(Retrier(policy))).policy == policy


# Through a backend.


def failing_once(service, kind, error, *, before):
    """A service whose first call of each verb fails, before it has an effect or behind it."""
    failed = set()

    class FailingOnce(Forwarding, kind):
        def _call(self, verb, function, /, *arguments, **options):
            fails = verb not in failed
            failed.add(verb)
            if fails and before:
                raise error
            result = function(*arguments, **options)
            if fails:
                raise error
            return result

    return FailingOnce(service)


def failing_backend(inner, error, *, before=False):
    kinds = {"ebs": BlockStore, "s3": ObjectStore, "ec2": ImageRegistry}
    services = {
        part: failing_once(getattr(inner, part), kind, error, before=before) for part, kind in kinds.items()
    }
    return Backend(**services)


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError("late")])
def test_a_broken_connection_of_a_users_backend_is_tried_again(clock, error):
    retrying = RetryingBackend(failing_backend(MemoryBackend(), error, before=True), clock.retrier())
    assert retrying.ec2.describe_images() == []
    assert len(clock.sleeps) == 1


def test_a_missing_file_of_a_users_backend_is_not_tried_again(clock):
    broken = failing_backend(MemoryBackend(), FileNotFoundError("gone"), before=True)
    with pytest.raises(BackendError, match="attempts 1"):
        RetryingBackend(broken, clock.retrier()).ec2.describe_images()


@pytest.fixture
def losing(clock):
    memory = MemoryBackend()
    inner = failing_backend(memory, ConnectionResetError("the answer was lost"))
    memory.s3.create_bucket("bucket")
    return memory, RetryingBackend(inner, clock.retrier())


def test_lost_answers_of_all_block_calls_leave_one_snapshot_with_the_right_blocks(losing):
    memory, retrying = losing
    blocks = {0: block(1), 9: block(2)}
    snapshot_id = store_snapshot(retrying.ebs, 1, blocks)
    assert read_snapshot(retrying.ebs, snapshot_id) == (1, blocks)
    assert list(memory.ebs._snapshots) == [snapshot_id]
    retrying.ebs.delete_snapshot(snapshot_id)
    with pytest.raises(NotFoundError):
        memory.ebs.describe_snapshot(snapshot_id)


@pytest.mark.parametrize("if_none_match", [False, True])
def test_lost_answers_of_all_object_calls_leave_one_object_and_at_most_a_listed_upload(losing, if_none_match):
    memory, retrying = losing
    pieces = [bytes([number]) * 100 for number in range(9)]
    info = retrying.s3.put_object("bucket", "key", pieces, part_size=300, if_none_match=if_none_match)
    assert info == memory.s3.head_object("bucket", "key")
    assert memory.s3.get_object_range("bucket", "key", 0, 1000) == b"".join(pieces)
    # S3 has no client token for an upload: the one whose id was lost can be found by its key.
    assert [each.key for each in memory.s3.list_multipart_uploads("bucket", "key")] == ["key"]


def test_an_object_that_another_one_made_is_not_taken_for_ours(losing):
    memory, retrying = losing
    memory.s3.put_object("bucket", "key", [b"theirs"])
    with pytest.raises(AlreadyExistsError):
        retrying.s3.put_object("bucket", "key", [b"our's!"], if_none_match=True)
    assert memory.s3.get_object_range("bucket", "key", 0, 10) == b"theirs"


def test_a_lost_answer_of_register_image_leaves_one_image(losing):
    memory, retrying = losing
    snapshot_id = store_snapshot(memory.ebs, 1, {})
    mapping = BlockDeviceMapping(device_name="/dev/sda1", ebs=EbsBlockDevice(snapshot_id=snapshot_id))
    image = Image(image_id="ami-00000001", name="web", block_device_mappings=(mapping,))
    image_id = retrying.ec2.register_image(image)
    assert [each.image_id for each in memory.ec2.describe_images()] == [image_id]
    with pytest.raises(AlreadyExistsError):  # this time nothing was lost
        retrying.ec2.register_image(image)


def test_another_image_of_that_name_is_not_taken_for_ours(losing):
    memory, retrying = losing
    ids = [store_snapshot(memory.ebs, 1, {}) for _ in range(2)]
    first, second = (
        Image(
            image_id="ami-00000001",
            name="web",
            block_device_mappings=(
                BlockDeviceMapping(device_name="/dev/sda1", ebs=EbsBlockDevice(snapshot_id=snapshot_id)),
            ),
        )
        for snapshot_id in ids
    )
    memory.ec2.register_image(first)
    with pytest.raises(AlreadyExistsError):
        retrying.ec2.register_image(second)


def test_a_damaged_answer_is_asked_for_again(clock):
    memory = MemoryBackend()
    snapshot_id = store_snapshot(memory.ebs, 1, {0: block(1)})
    inner = MemoryBackend()
    inner.ebs = Damaging(memory.ebs, [block(2), block(1)[:-1], block(1)])
    retrying = RetryingBackend(inner, clock.retrier())
    assert read_snapshot(retrying.ebs, snapshot_id) == (1, {0: block(1)})
    inner.ebs.contents = [block(2)] * 9
    with pytest.raises(ChecksumMismatchError, match="attempts 5"):
        RetryingBackend(inner, clock.retrier()).ebs.get_snapshot_block(snapshot_id, 0, "")


def test_a_result_that_is_not_good_is_another_reason_to_try_again(clock):
    results = iter([b"short", transient(), b"whole"])

    def function():
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    assert clock.retrier().call_until(lambda result: result == b"whole", "s3", function) == b"whole"
    assert clock.sleeps == [0.0, 0.2]  # damage says nothing of the service


def test_the_last_result_is_given_though_it_is_not_good(clock):
    results = iter(range(10))
    assert clock.retrier(attempts=3).call_until(lambda result: False, "s3", lambda: next(results)) == 2


def test_no_attempt_begins_after_the_time_limit_for_results_that_are_not_good_either(clock):
    made = []

    def slow():
        made.append(clock.now)
        clock.now += 60
        return b"damaged"

    clock.retrier(attempts=50, operation_limit=100).call_until(lambda result: False, "s3", slow)
    assert len(made) == 2


def test_results_that_are_not_good_take_nothing_of_the_budget(clock):
    retrier = clock.retrier(budget=10)
    for _ in range(20):
        retrier.call_until(lambda result: False, "s3", lambda: b"damaged where it lies")
    failing = Failing(transient())
    assert retrier.call("s3", failing) == "done"


def test_each_further_attempt_is_logged_without_secrets(clock, caplog):
    caplog.set_level("INFO")
    error = BackendError("GET /?X-Amz-Signature=CANARY: busy", retryable=True)
    assert clock.retrier().call("s3", Failing(error, error)) == "done"
    assert [each.partition(":")[0] for each in caplog.messages] == [
        "attempt 1 of 5 failed, the next one in 0.1 s",
        "attempt 2 of 5 failed, the next one in 0.2 s",
    ]
    assert "CANARY" not in caplog.text


def test_retries_around_retries_are_not_nested(clock):
    faulty = FaultyBackend(MemoryBackend())
    twice = RetryingBackend(RetryingBackend(faulty), clock.retrier(attempts=3))
    faulty.add_fault("*", "error")
    for call in (
        lambda: twice.ebs.start_snapshot(1),
        lambda: twice.s3.head_object("bucket", "key"),
        lambda: twice.ec2.describe_images(),
    ):
        with pytest.raises(BackendError, match="attempts 3"):
            call()
    assert set(faulty.calls.values()) == {3}
    asked = []

    def preflight(image):
        asked.append(image)
        raise BackendError("busy", retryable=True)

    faulty.preflight = preflight
    with pytest.raises(BackendError, match="attempts 5"):
        twice.preflight(Image(image_id="ami-01234567"))
    assert len(asked) == 5  # of the inner one


def test_the_error_of_a_part_from_a_file_is_raised_and_tried_again_though_a_view_is_kept(clock, tmp_path):
    backend = MemoryBackend()
    backend.s3.create_bucket("bucket")
    send, errors = backend.s3.upload_part, [StorageFullError("full"), BackendError("busy", retryable=True)]

    def upload_part(bucket, key, upload_id, part_number, content):
        view = memoryview(content)
        if errors:
            raise errors.pop()
        return send(bucket, key, upload_id, part_number, view)

    backend.s3.upload_part = upload_part
    store = RetryingBackend(backend, clock.retrier()).s3
    upload = store.create_multipart_upload("bucket", "key")
    (tmp_path / "part").write_bytes(b"content")
    with (tmp_path / "part").open("rb") as file:
        with pytest.raises(StorageFullError):
            store.upload_part_file("bucket", "key", upload, 1, file)
        assert len(clock.sleeps) == 1
        assert store.upload_part_file("bucket", "key", upload, 1, file).size == len(b"content")


class Damaging:
    def __init__(self, inner, contents):
        self.inner = inner
        self.contents = contents

    def list_snapshot_blocks(self, *arguments, **options):
        return self.inner.list_snapshot_blocks(*arguments, **options)

    def get_snapshot_block(self, *arguments):
        return SnapshotBlock(self.contents.pop(0), hashlib.sha256(block(1)).digest())


def test_many_threads_share_one_budget():
    retrier = Retrier(RetryPolicy(budget=100, base_delay=0.0))
    calls = [Failing(*(transient() for _ in range(9))) for _ in range(40)]

    def run(call):
        with pytest.raises(BackendError):
            retrier.call("lane", call)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(call.calls for call in calls) == 40 + 100 // 5


class TestRetryingBlockStore(BlockStoreContract):
    @pytest.fixture
    def store(self):
        return RetryingBackend(MemoryBackend(page_size=3)).ebs


class TestRetryingObjectStore(ObjectStoreContract):
    @pytest.fixture
    def objects(self):
        memory = MemoryBackend()
        memory.s3.create_bucket("bucket")
        return BucketCase(store=RetryingBackend(memory).s3, bucket="bucket")


class TestRetryingImageRegistry(ImageRegistryContract):
    @pytest.fixture
    def registry(self):
        retrying = RetryingBackend(MemoryBackend())
        return RegistryCase(registry=retrying.ec2, store=retrying.ebs)
