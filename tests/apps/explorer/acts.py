"""What a user of the explorer does in several of its tests."""

from typing import Any


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def upload(page: Any, where: str, name: str, data: bytes, mime: str = "image/jpeg") -> None:
    """A file through the button. A browser opens no chooser for a click that its page answers 5 s late, so that a
    page still busy with its first drawing is waited for, as a user waits."""
    page.locator(f"#{where}-upload").wait_for()
    page.evaluate("() => new Promise(done => requestIdleCallback(done))")
    with page.expect_file_chooser() as chooser:
        page.click(f"#{where}-upload")
    chooser.value.set_files({"name": name, "mimeType": mime, "buffer": data})
