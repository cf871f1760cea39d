from gmtool.errors import MessageKinds, some_names


def test_of_many_names_three_are_shown_and_the_others_counted() -> None:
    assert some_names(["a"]) == "a"
    assert some_names(["a", "b", "c"]) == "a, b, c"
    assert some_names(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_messages_of_one_kind_are_one_line_with_three_names_and_a_count() -> None:
    kinds = MessageKinds()
    for index in range(1500):
        kinds.add(f"in/{index}.jpg", f"in/{index}.jpg: not an image")
    assert kinds.lines() == ["in/0.jpg: not an image (1500 such: in/0.jpg, in/1.jpg, in/2.jpg and 1497 more)"]
    assert kinds.is_cut
    kinds = MessageKinds(
        [("town/b", "town/b: truth/town/b_gtFine.png has label 34"), ("a", "a: truth/a.png has label 5")]
    )
    kinds.add("in/c.jpg", "out/c.png: cannot be written: No space left on device")
    assert kinds.lines() == [
        "town/b: truth/town/b_gtFine.png has label 34 (2 such: town/b, a)",
        "out/c.png: cannot be written: No space left on device",
    ]
    assert not kinds.is_cut


def test_a_name_that_is_a_word_of_the_message_makes_no_other_kind() -> None:
    kinds = MessageKinds((name, f"{name}.jpg: not an image") for name in ("a", "im", "t", "[1]*"))
    assert len(kinds.lines()) == 1


def test_kinds_without_end_are_counted() -> None:
    words = [f"{first}{second}" for first in "abcdefgh" for second in "abcdefgh"]
    kinds = MessageKinds((word, f"strange {word * 2}") for word in words)
    assert len(kinds.lines()) == MessageKinds.MAX_KINDS + 1
    assert kinds.lines()[-1] == "44 of other kinds"
    assert kinds.is_cut
