"""As a person would: choose a ZIP, watch the check, train, watch the curves, give it an image, look at the overlay."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import FilePayload, Locator, Page, Route, expect

from tests.browser.conftest import LOOK_MS
from tests.e2e import drawings
from tests.platform import WORK_SECONDS, Platform

pytestmark = pytest.mark.browser

WORK_MS = WORK_SECONDS * 1000
# How many of a canvas's pixels are coloured: the images here are grey, so only classes have a colour.
COLOURED = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let at = 0; at < data.length; at += 4) {
    if (Math.max(data[at], data[at + 1], data[at + 2]) - Math.min(data[at], data[at + 1], data[at + 2]) > 12) count += 1;
  }
  return count;
}"""
PICTURE = "canvas => canvas.toDataURL()"
BLANK = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.every((value) => value === data[0]);
}"""


def wait_until(page: Page, canvas: Locator, script: str) -> None:
    """Until a function of the canvas is true (it is drawn in the browser's next frame, or when a slice has come)."""
    page.wait_for_function(script, arg=canvas.element_handle(), timeout=LOOK_MS)


def picture(canvas: Locator) -> str:
    return str(canvas.evaluate(PICTURE))


def wait_for_another(page: Page, canvas: Locator, before: str) -> str:
    """The canvas's picture as soon as it is another than `before`."""
    handle = canvas.element_handle()
    page.wait_for_function("([canvas, before]) => canvas.toDataURL() !== before", arg=[handle, before], timeout=LOOK_MS)
    return picture(canvas)


def coloured(canvas: Locator) -> int:
    return int(canvas.evaluate(COLOURED))


def file(name: str, kind: str, content: bytes) -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": content}


def upload_a_dataset(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Start with a dataset")
    page.get_by_role("main").get_by_role("link", name="Upload a dataset").click()
    page.get_by_label("ZIP file", exact=True).set_input_files(
        file("bright_discs.zip", "application/zip", drawings.png_dataset())
    )
    form = page.get_by_role("tabpanel")
    expect(form.get_by_text("bright_discs.zip (")).to_be_visible()
    expect(form.get_by_label("Name")).to_have_value("bright discs")
    held: list[Route] = []
    page.route("**/api/v1/datasets/", held.append)  # so that there is time to look at the progress bar
    form.get_by_role("button", name="Upload").click()
    expect(form.get_by_role("progressbar", name="Upload")).to_be_visible()
    expect(form.get_by_role("button", name="Stop")).to_be_visible()
    held[0].continue_()
    page.wait_for_url(re.compile(r"/datasets/\d+/$"))
    page.unroute_all()


def look_at_the_dataset(page: Page) -> None:
    expect(page.get_by_role("heading", level=1)).to_contain_text("ready", timeout=WORK_MS)  # without a reload
    samples = page.get_by_role("region", name="Samples")
    thumbnails = samples.get_by_role("img", name=re.compile("with its mask over it"))
    expect(thumbnails).to_have_count(8)
    for thumbnail in thumbnails.all():
        thumbnail.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=thumbnail.element_handle())


def train_a_model(page: Page) -> None:
    page.get_by_role("link", name="Train a model").click()
    page.get_by_label("Name").fill("Disc finder")
    expect(page.get_by_label("Dataset")).to_contain_text("bright discs")
    page.get_by_text("Advanced: choose hyperparameters yourself").click()
    page.get_by_label("Epochs").fill(str(drawings.QUICK["epochs"]))
    page.get_by_label("Patch size").fill(str(drawings.QUICK["patch_size"]))
    page.get_by_label("Batch size").fill(str(drawings.QUICK["batch_size"]))
    page.get_by_label("Learning rate").fill(str(drawings.QUICK["learning_rate"]))
    page.get_by_role("button", name="Train", exact=True).click()
    page.wait_for_url(re.compile(r"/models/\d+/$"))


def watch_the_training(page: Page) -> None:
    expect(page.get_by_role("progressbar", name="Training")).to_be_visible()
    expect(page.get_by_role("button", name="Try it on an image")).to_be_disabled()
    expect(page.get_by_role("heading", level=1)).to_contain_text("completed", timeout=WORK_MS)  # without a reload
    curves = page.get_by_role("region", name="Curves")
    for name in ("Training and validation loss by epoch", "Validation Dice and IoU by epoch"):
        canvas = curves.get_by_role("img", name=re.compile(name))
        expect(canvas).to_be_visible()
        wait_until(page, canvas, f"canvas => !({BLANK})(canvas)")
    curves.get_by_text("The same as a table").click()
    epochs = curves.get_by_role("row").filter(has=page.get_by_role("cell"))
    expect(epochs).to_have_count(2)
    expect(page.get_by_text("Research use only, not a medical device.").first).to_be_visible()


def segment_an_image(page: Page) -> None:
    page.get_by_role("link", name="Try it on an image").click()
    form = page.get_by_role("tabpanel")
    expect(form.get_by_label("Model")).to_contain_text("Disc finder v1")
    form.get_by_label("Image", exact=True).set_input_files(
        file("unseen.png", "image/png", drawings.png(drawings.disc(100)[0]))
    )
    form.get_by_role("button", name="Segment").click()
    page.wait_for_url(re.compile(r"/inferences/\d+/$"))
    expect(page.get_by_role("heading", level=1)).to_contain_text("completed", timeout=WORK_MS)  # without a reload


def look_at_the_overlay(page: Page) -> None:
    viewer = page.get_by_role("region", name="Viewer")
    canvas = viewer.get_by_role("img", name="unseen.png with its mask over it")
    opacity = viewer.get_by_role("slider", name="Opacity")
    wait_until(page, canvas, f"canvas => !({BLANK})(canvas) && ({COLOURED})(canvas) > 0")
    total = int(canvas.evaluate("canvas => canvas.width * canvas.height"))
    at_half = picture(canvas)
    assert 0.02 < coloured(canvas) / total < 0.6, "the disc is found, and not all of the image"

    opacity.fill("100")
    solid = wait_for_another(page, canvas, at_half)
    opacity.fill("0")
    bare = wait_for_another(page, canvas, solid)
    assert coloured(canvas) == 0
    opacity.fill("50")
    wait_for_another(page, canvas, bare)
    assert picture(canvas) == at_half

    switch = viewer.get_by_role("checkbox", name="class 255")
    expect(switch).to_be_checked()
    switch.uncheck()
    assert wait_for_another(page, canvas, at_half) == bare
    switch.check()
    assert wait_for_another(page, canvas, bare) == at_half

    viewer.get_by_text("Side by side", exact=True).click()
    alone, mask = (
        viewer.get_by_role("img", name="The image unseen.png"),
        viewer.get_by_role("img", name="The mask of unseen.png"),
    )
    expect(alone).to_be_visible()
    wait_until(page, mask, f"canvas => ({COLOURED})(canvas) > 0")
    wait_until(page, alone, f"canvas => !({BLANK})(canvas)")
    assert coloured(alone) == 0


def test_from_an_empty_platform_to_an_overlay(page: Page) -> None:
    upload_a_dataset(page)
    look_at_the_dataset(page)
    train_a_model(page)
    watch_the_training(page)
    segment_an_image(page)
    look_at_the_overlay(page)
    page.goto("/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Segment another image")
    expect(page.get_by_role("img", name="unseen.png with the classes found over it")).to_be_visible()


def test_a_volume_is_looked_through_slice_by_slice(page: Page, platform: Platform) -> None:
    dataset = platform.upload("Balls", drawings.nifti_dataset())
    assert dataset["status"] == "ready", dataset["error"]
    page.goto(f"/datasets/{dataset['id']}/")
    page.get_by_role("region", name="Samples").get_by_role("link").first.click()
    viewer = page.get_by_role("region", name="Viewer")
    canvas = viewer.get_by_role("img", name=re.compile("with its mask over it"))
    slices = viewer.get_by_role("slider", name="Slice")
    wait_until(page, canvas, f"canvas => ({COLOURED})(canvas) > 0")
    expect(viewer.get_by_text("4 / 6")).to_be_visible()
    middle = picture(canvas)

    slices.fill("0")
    first = wait_for_another(page, canvas, middle)
    expect(viewer.get_by_text("1 / 6")).to_be_visible()
    assert coloured(canvas) == 0, "there is nothing of the ball in the first slice"

    canvas.hover()
    page.mouse.wheel(0, 100)
    second = wait_for_another(page, canvas, first)
    expect(viewer.get_by_text("2 / 6")).to_be_visible()
    expect(slices).to_have_value("1")
    assert coloured(canvas) > 0
    page.mouse.wheel(0, -100)
    assert wait_for_another(page, canvas, second) == first
