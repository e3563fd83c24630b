"""What a `ConversationStore` does, whichever side it is."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from iceburg.database.protocol import Adapter, Conversation
from iceburg.errors import UsageError
from tests.contract.values import BAD_LIMITS, JSON_VALUES, NOT_TEXTS, TEXTS, Opaque, at_once, circular, deep, same_json

AT = "2026-03-01T12:00:00.000001"


def save(adapter: Adapter, conversation_id: str = "c", question: str = "question", at: str = AT) -> int:
    return adapter.conversations.save(conversation_id, question, "answer", timestamp=at)


def numbers(conversations: list[Conversation]) -> list[int]:
    return [conversation.id for conversation in conversations]


class ConversationContract:
    def test_nothing_is_there_at_first(self, adapter: Adapter) -> None:
        assert adapter.conversations.newest() == []
        assert adapter.conversations.newest("c") == []
        assert adapter.conversations.get(1) is None
        assert adapter.conversations.update(1, {"mode": "chat"}) is False
        assert adapter.conversations.update(1, {}) is False
        assert adapter.conversations.delete(1) is False

    def test_what_is_saved_is_read(self, adapter: Adapter) -> None:
        number = adapter.conversations.save("conv_1", "Warum?", "Darum. 🧊", "surveyor", "research", {"tokens": 12}, AT)
        found = adapter.conversations.get(number)
        assert found is not None
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", found.created_at or "")
        expected = Conversation(
            number, "conv_1", AT, "Warum?", "Darum. 🧊", "surveyor", "research", {"tokens": 12}, found.created_at
        )
        assert found == expected
        assert adapter.conversations.newest() == [expected]
        assert adapter.conversations.newest("conv_1") == [expected]

    def test_what_is_left_out_is_none(self, adapter: Adapter) -> None:
        found = adapter.conversations.get(adapter.conversations.save("c", "q", "a"))
        assert found is not None
        assert (found.agent_used, found.mode, found.metadata) == (None, None, None)

    def test_the_time_is_now_local_with_microseconds(self, adapter: Adapter) -> None:
        before = datetime.now()
        found = adapter.conversations.get(adapter.conversations.save("c", "q", "a"))
        assert found is not None
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", found.timestamp)
        assert before <= datetime.fromisoformat(found.timestamp) <= datetime.now()
        made = datetime.fromisoformat(found.created_at or "").replace(tzinfo=UTC)
        assert timedelta(-2) / 86400 <= datetime.now(UTC) - made < timedelta(minutes=5)

    def test_numbers_ascend_and_are_never_used_again(self, adapter: Adapter) -> None:
        first, second, third = (save(adapter) for _ in range(3))
        assert first < second < third
        assert adapter.conversations.delete(third)
        assert save(adapter) > third

    @pytest.mark.parametrize("text", TEXTS)
    def test_any_text_comes_back(self, adapter: Adapter, text: str) -> None:
        number = adapter.conversations.save(text, text, text, text, text, {"text": text}, AT)
        found = adapter.conversations.get(number)
        assert found is not None
        assert (found.conversation_id, found.user_message, found.assistant_message) == (text, text, text)
        assert (found.agent_used, found.mode, found.metadata) == (text, text, {"text": text})
        assert adapter.conversations.newest(text) == [found]

    @pytest.mark.parametrize("value", JSON_VALUES)
    def test_any_json_value_is_metadata(self, adapter: Adapter, value: Any) -> None:
        number = adapter.conversations.save("c", "q", "a", metadata=value)
        found = adapter.conversations.get(number)
        assert found is not None
        assert same_json(found.metadata, value)
        other = save(adapter)
        assert adapter.conversations.update(other, {"metadata": value})
        changed = adapter.conversations.get(other)
        assert changed is not None
        assert same_json(changed.metadata, value)

    def test_nan_is_metadata(self, adapter: Adapter) -> None:
        found = adapter.conversations.get(adapter.conversations.save("c", "q", "a", metadata={"score": math.nan}))
        assert found is not None
        assert math.isnan(found.metadata["score"])

    @pytest.mark.parametrize(
        "at",
        ["2026-03-01T12:00:00", "2026-03-01 12:00:00.5", "2026-03-01T12:00:00Z", "2026-03-01T12:00:00.25+01:00",
         "2026-03-01", "last Tuesday", "", "1740830400.25", "2016-12-31T23:59:60", "2026-03-01T12:00:00.123456789"],
    )  # fmt: skip
    def test_the_time_is_kept_as_it_was_written(self, adapter: Adapter, at: str) -> None:
        number = save(adapter, at=at)
        found = adapter.conversations.get(number)
        assert found is not None
        assert found.timestamp == at
        assert [one.timestamp for one in adapter.conversations.newest()] == [at]

    def test_the_newest_come_by_time_then_by_number(self, adapter: Adapter) -> None:
        times = ["2026-01-01T00:00:00", "2026-01-01T00:00:00.000001", "2025-12-31T23:59:59.999999",
                 "2026-01-01T00:00:00", "2026-01-01T00:00:01", "2026-01-01T00:00:00"]  # fmt: skip
        saved = [save(adapter, at=at) for at in times]
        expected = [saved[i] for i in (4, 1, 5, 3, 0, 2)]
        assert numbers(adapter.conversations.newest()) == expected
        assert numbers(adapter.conversations.newest("c")) == expected
        assert numbers(adapter.conversations.newest(limit=2)) == expected[:2]

    def test_only_those_of_the_conversation(self, adapter: Adapter) -> None:
        a, b, upper = save(adapter, "conv_a"), save(adapter, "conv_b"), save(adapter, "CONV_A")
        assert numbers(adapter.conversations.newest("conv_a")) == [a]
        assert numbers(adapter.conversations.newest("conv_b")) == [b]
        assert numbers(adapter.conversations.newest("CONV_A")) == [upper]
        assert adapter.conversations.newest("conv") == []
        assert adapter.conversations.newest("conv%") == []
        assert adapter.conversations.newest("conv_a ") == []
        assert adapter.conversations.newest("conv\udc80") == []

    @pytest.mark.parametrize("conversation_id", [None, "c0"])
    @pytest.mark.parametrize("size", [1, 3, 7, 100])
    def test_pages_hold_each_exchange_once(self, adapter: Adapter, size: int, conversation_id: str | None) -> None:
        for n in range(30):
            # Groups of one time, wider than some pages; not in the order of saving.
            save(adapter, f"c{n % 2}", at=f"2026-01-01T00:00:00.{n * 7 % 30 // 5:06d}")
        whole = adapter.conversations.newest(conversation_id, limit=1000)
        assert len(whole) == (30 if conversation_id is None else 15)
        pages: list[Conversation] = []
        last: Conversation | None = None
        while page := adapter.conversations.newest(conversation_id, limit=size, before=last):
            assert len(page) <= size
            pages += page
            assert len(pages) <= len(whole)
            last = page[-1]
        assert pages == whole

    def test_a_page_goes_on_behind_an_exchange_that_is_gone(self, adapter: Adapter) -> None:
        saved = [save(adapter) for _ in range(4)]
        last = adapter.conversations.newest(limit=2)[-1]
        adapter.conversations.delete(last.id)
        assert numbers(adapter.conversations.newest(before=last)) == [saved[1], saved[0]]

    def test_new_exchanges_do_not_move_a_page(self, adapter: Adapter) -> None:
        saved = [save(adapter) for _ in range(4)]
        last = adapter.conversations.newest(limit=2)[-1]
        save(adapter, at="2027-01-01T00:00:00")
        assert numbers(adapter.conversations.newest(before=last)) == [saved[1], saved[0]]

    def test_limits(self, adapter: Adapter) -> None:
        for _ in range(101):
            save(adapter)
        assert adapter.conversations.newest(limit=0) == []
        assert len(adapter.conversations.newest()) == 100
        assert len(adapter.conversations.newest(limit=2**80)) == 101

    @pytest.mark.parametrize("limit", BAD_LIMITS)
    def test_a_wrong_limit_is_an_error(self, adapter: Adapter, limit: Any) -> None:
        with pytest.raises(UsageError, match="limit"):
            adapter.conversations.newest(limit=limit)

    def test_an_update_changes_what_it_names(self, adapter: Adapter) -> None:
        first, second = save(adapter), save(adapter)
        before = adapter.conversations.get(first)
        other = adapter.conversations.get(second)
        assert before is not None
        assert adapter.conversations.update(first, {"assistant_message": "better", "metadata": {"edited": True}})
        expected = Conversation(
            first, "c", AT, "question", "better", None, None, {"edited": True}, created_at=before.created_at
        )
        assert adapter.conversations.get(first) == expected
        assert adapter.conversations.get(second) == other

    def test_an_update_can_change_every_field(self, adapter: Adapter) -> None:
        number = save(adapter)
        changes = {
            "conversation_id": "d", "timestamp": "2020-01-01T00:00:00", "user_message": "u", "assistant_message": "v",
            "agent_used": "w", "mode": "x", "metadata": [1], "created_at": "2020-01-02 03:04:05",
        }  # fmt: skip
        assert adapter.conversations.update(number, changes)
        expected = Conversation(number, "d", "2020-01-01T00:00:00", "u", "v", "w", "x", [1], "2020-01-02 03:04:05")
        assert adapter.conversations.get(number) == expected
        assert adapter.conversations.newest("c") == []
        assert adapter.conversations.newest("d") == [expected]
        back = {"agent_used": None, "mode": None, "metadata": None, "created_at": None}
        assert adapter.conversations.update(number, back)
        bare = Conversation(number, "d", "2020-01-01T00:00:00", "u", "v")
        assert adapter.conversations.get(number) == bare

    def test_an_update_moves_an_exchange_in_the_order(self, adapter: Adapter) -> None:
        first, second = save(adapter), save(adapter)
        assert adapter.conversations.update(first, {"timestamp": "2027-01-01T00:00:00"})
        assert numbers(adapter.conversations.newest()) == [first, second]

    def test_an_update_of_nothing_says_whether_it_is_there(self, adapter: Adapter) -> None:
        number = save(adapter)
        before = adapter.conversations.get(number)
        assert adapter.conversations.update(number, {}) is True
        assert adapter.conversations.get(number) == before

    def test_an_update_to_the_same_values_is_one(self, adapter: Adapter) -> None:
        assert adapter.conversations.update(save(adapter), {"user_message": "question"}) is True

    @pytest.mark.parametrize("name", ["id", "answer", "Mode", "mode = 'x' --", ""])
    def test_a_field_that_there_is_not_is_named(self, adapter: Adapter, name: str) -> None:
        number = save(adapter)
        before = adapter.conversations.get(number)
        with pytest.raises(UsageError, match=re.escape(repr(name))):
            adapter.conversations.update(number, {"user_message": "changed", name: "x"})
        assert adapter.conversations.get(number) == before

    @pytest.mark.parametrize("field", ["conversation_id", "timestamp", "user_message", "assistant_message"])
    @pytest.mark.parametrize("value", NOT_TEXTS)
    def test_a_value_that_is_no_text_is_refused(self, adapter: Adapter, field: str, value: Any) -> None:
        number = save(adapter)
        before = adapter.conversations.newest()
        with pytest.raises(UsageError, match=field):
            adapter.conversations.update(number, {"mode": "changed", field: value})
        if not (field == "timestamp" and value is None):
            arguments = {"conversation_id": "c", "user_message": "q", "assistant_message": "a", field: value}
            with pytest.raises(UsageError, match=field):
                adapter.conversations.save(**arguments)
        assert adapter.conversations.newest() == before

    @pytest.mark.parametrize("field", ["agent_used", "mode"])
    @pytest.mark.parametrize("value", [5, b"a", "\ud800", ["a"]])
    def test_an_optional_value_that_is_no_text_is_refused(self, adapter: Adapter, field: str, value: Any) -> None:
        with pytest.raises(UsageError, match=field):
            adapter.conversations.save("c", "q", "a", **{field: value})
        assert adapter.conversations.newest() == []

    @pytest.mark.parametrize("make", [Opaque, circular, deep, lambda: b"a", lambda: {(1, 2): 3}])
    def test_metadata_that_is_not_json_is_refused(self, adapter: Adapter, make: Any) -> None:
        with pytest.raises(UsageError, match="metadata"):
            adapter.conversations.save("c", "q", "a", metadata=make())
        number = save(adapter)
        with pytest.raises(UsageError, match="metadata"):
            adapter.conversations.update(number, {"user_message": "changed", "metadata": make()})
        found = adapter.conversations.get(number)
        assert found is not None
        assert (found.user_message, found.metadata) == ("question", None)

    def test_deleting(self, adapter: Adapter) -> None:
        first, second, third = (save(adapter) for _ in range(3))
        assert adapter.conversations.delete(second) is True
        assert adapter.conversations.delete(second) is False
        assert adapter.conversations.get(second) is None
        assert adapter.conversations.update(second, {"mode": "x"}) is False
        assert numbers(adapter.conversations.newest()) == [third, first]

    @pytest.mark.parametrize("number", [0, -1, 2**63 - 1, 2**63, -(2**63) - 1, 2**200])
    def test_a_number_that_there_is_not(self, adapter: Adapter, number: int) -> None:
        save(adapter)
        assert adapter.conversations.get(number) is None
        assert adapter.conversations.update(number, {"mode": "x"}) is False
        assert adapter.conversations.delete(number) is False

    def test_threads_write_at_once(self, adapter: Adapter) -> None:
        saved: list[int] = []

        def work(thread: int) -> None:
            for n in range(5):
                number = save(adapter, f"thread {thread}", f"{thread}.{n}")
                found = adapter.conversations.get(number)
                assert found is not None
                assert found.user_message == f"{thread}.{n}"
                assert adapter.conversations.update(number, {"mode": "done"})
                saved.append(number)
                if n == 4:
                    assert adapter.conversations.delete(number)

        at_once([partial(work, thread) for thread in range(8)])
        assert len(set(saved)) == 40
        left = adapter.conversations.newest(limit=1000)
        assert len(left) == 32
        assert {one.mode for one in left} == {"done"}
        for thread in range(8):
            own = adapter.conversations.newest(f"thread {thread}")
            assert [one.user_message for one in own] == [f"{thread}.{n}" for n in (3, 2, 1, 0)]
