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
# How colourful a canvas is: the mean over its pixels of how far red, green and blue are apart. The images here are grey,
# so only classes have a colour. (Pictures are not compared bit by bit: Chromium may draw the same a little otherwise.)
COLOUR = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0;
  for (let at = 0; at < data.length; at += 4) {
    sum += Math.max(data[at], data[at + 1], data[at + 2]) - Math.min(data[at], data[at + 1], data[at + 2]);
  }
  return sum / (canvas.width * canvas.height);
}"""
IS_BLANK = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.every((value) => value === data[0]);
}"""
NONE, ANY = "=== 0", "> 1"


def colour(canvas: Locator) -> float:
    return float(canvas.evaluate(COLOUR))


def wait_for_colour(page: Page, canvas: Locator, condition: str) -> None:
    """Until the canvas's colour is so (it is drawn in the browser's next frame, or when a slice has come)."""
    page.wait_for_function(f"canvas => ({COLOUR})(canvas) {condition}", arg=canvas.element_handle(), timeout=LOOK_MS)


def wait_until_drawn(page: Page, canvas: Locator) -> None:
    page.wait_for_function(f"canvas => !({IS_BLANK})(canvas)", arg=canvas.element_handle(), timeout=LOOK_MS)


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
    # Without scripts the page shows all its parts below each other; the script leaves one.
    expect(form).to_have_count(1)
    expect(form.get_by_text("bright_discs.zip (")).to_be_visible()
    expect(form.get_by_label("Name")).to_have_value("bright discs")
    held: list[Route] = []
    page.route(
        "**/api/v1/datasets/", lambda route: held.append(route)
    )  # so that there is time to look at the progress bar
    form.get_by_role("button", name="Upload").click()
    expect(form.get_by_role("progressbar", name="Upload")).to_be_visible()
    expect(form.get_by_role("button", name="Stop")).to_be_visible()
    held[0].continue_()
    page.wait_for_url(re.compile(r"/datasets/\d+/$"))
    page.unroute_all()


def look_at_the_dataset(page: Page) -> None:
    expect(page.get_by_role("heading", level=1)).to_contain_text("ready", timeout=WORK_MS)  # without a reload
    samples = page.get_by_role("region", name="Images")
    thumbnails = samples.get_by_role("img", name=re.compile("with its mask over it"))
    expect(thumbnails).to_have_count(8)
    for thumbnail in thumbnails.all():
        thumbnail.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=thumbnail.element_handle())


def train_a_model(page: Page) -> None:
    page.get_by_role("link", name="Train a model").click()
    page.get_by_label("Name").fill("Disc finder")
    expect(page.get_by_label("Dataset")).to_contain_text("bright discs")
    plan = page.get_by_role("region", name="The plan, and why")
    expect(plan).to_contain_text("The images are pictures, so the network is 2D.", timeout=LOOK_MS)
    page.get_by_text("Advanced: choose hyperparameters yourself").click()
    for heading in ("Images and patches", "Learning", "Data and time"):
        page.locator("#advanced").get_by_text(heading, exact=True).click()
    spacing = page.get_by_role("textbox", name="Target spacing")
    spacing.fill("wide")
    spacing.blur()
    expect(page.locator("#id_spacing_error")).to_contain_text("Give two or three numbers", timeout=LOOK_MS)
    expect(plan).to_contain_text("This cannot be planned.")
    spacing.fill("")
    spacing.blur()
    expect(page.locator("#id_spacing_error")).to_be_hidden(timeout=LOOK_MS)
    page.get_by_label("Architecture").select_option("plain-unet")
    expect(page.get_by_label("Encoder").locator("option[value=resnet34]")).to_be_disabled()
    page.get_by_label("Architecture").select_option("")
    expect(
        page.get_by_label("Architecture").locator("option[value=plain-unet-3d]")
    ).to_be_disabled()  # these are pictures
    fields = {
        "epochs": "Epochs",
        "patch_size": "Patch size",
        "batch_size": "Batch size",
        "learning_rate": "Learning rate",
    }
    for name, label in fields.items():
        page.get_by_role("spinbutton", name=re.compile(f"^{label}")).fill(str(drawings.QUICK[name]))
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
        wait_until_drawn(page, canvas)
    curves.get_by_text("The same as a table").click()
    epochs = curves.get_by_role("row").filter(has=page.get_by_role("cell"))
    expect(epochs).to_have_count(2)
    expect(page.get_by_text("Research use only, not a medical device.").first).to_be_visible()


def segment_an_image(page: Page) -> None:
    page.get_by_role("link", name="Try it on an image").click()
    form = page.get_by_role("tabpanel")
    expect(form).to_have_count(1)
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
    wait_until_drawn(page, canvas)
    wait_for_colour(page, canvas, ANY)
    half = colour(canvas)
    as_before = f"> {0.95 * half}"

    opacity.fill("100")
    wait_for_colour(page, canvas, f"> {1.5 * half}")
    opacity.fill("0")
    wait_for_colour(page, canvas, NONE)
    wait_until_drawn(page, canvas)  # the image is still there
    opacity.fill("50")
    wait_for_colour(page, canvas, as_before)

    switch = viewer.get_by_role("checkbox", name="class 255")
    expect(switch).to_be_checked()
    switch.uncheck()
    wait_for_colour(page, canvas, NONE)
    switch.check()
    wait_for_colour(page, canvas, as_before)

    before = colour(canvas)
    page.keyboard.press("u")
    expect(viewer.get_by_role("button", name="Show where the model is unsure")).to_have_attribute(
        "aria-pressed", "true"
    )
    wait_for_colour(page, canvas, f"> {1.01 * before}")
    page.keyboard.press("u")
    wait_for_colour(page, canvas, f"< {1.005 * before}")

    viewer.get_by_text("Side by side", exact=True).click()
    image = viewer.get_by_role("img", name="The image unseen.png")
    wait_until_drawn(page, image)
    assert colour(image) == 0
    wait_for_colour(page, viewer.get_by_role("img", name="The mask of unseen.png"), ANY)


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
    page.get_by_role("region", name="Images").get_by_role("link").first.click()
    viewer = page.get_by_role("region", name="Viewer")
    canvas = viewer.get_by_role("img", name=re.compile("with its mask over it"))
    slices = viewer.get_by_role("slider", name="Slice")
    wait_for_colour(page, canvas, ANY)
    expect(viewer.get_by_text("4 / 6")).to_be_visible()

    slices.fill("0")  # there is nothing of the ball in the first slice
    wait_for_colour(page, canvas, NONE)
    expect(viewer.get_by_text("1 / 6")).to_be_visible()
    wait_until_drawn(page, canvas)

    canvas.hover()
    page.mouse.wheel(0, 100)
    wait_for_colour(page, canvas, ANY)
    expect(viewer.get_by_text("2 / 6")).to_be_visible()
    expect(slices).to_have_value("1")
    page.mouse.wheel(0, -100)
    wait_for_colour(page, canvas, NONE)
    expect(viewer.get_by_text("1 / 6")).to_be_visible()
