from gmtool.errors import some_names


def test_of_many_names_three_are_shown_and_the_others_counted() -> None:
    assert some_names(["a"]) == "a"
    assert some_names(["a", "b", "c"]) == "a, b, c"
    assert some_names(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
