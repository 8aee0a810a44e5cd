"""Forms of the dataset pages. The upload has none: the page sends it to the API, which lets it show the progress."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from django import forms

from datasets import services
from datasets.models import Dataset, DatasetClass
from medseg_site.shared.base.errors import MedSegError

if TYPE_CHECKING:
    ClassModelForm = forms.ModelForm[DatasetClass]
else:
    ClassModelForm = forms.ModelForm


class ReadingForm(forms.Form):
    """How the masks of a dataset are read: which value is the background, and which ones nobody labelled."""

    background = forms.TypedChoiceField(coerce=int)
    ignore = forms.TypedMultipleChoiceField(coerce=int, required=False)

    def __init__(self, dataset: Dataset, data: Any) -> None:
        super().__init__(data)
        self.codes: dict[str, int] = dataset.fingerprint.get("mask_codes", {})
        values = [*(item.value for item in dataset.classes.all()), *dataset.fingerprint.get("ignored", [])]
        for name in ("background", "ignore"):
            self.fields[name].choices = [(value, value) for value in values]  # type: ignore[attr-defined]  # of choices

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = self.cleaned_data
        if values.get("background") in values.get("ignore", []):
            raise forms.ValidationError("The background cannot be ignored.")
        return values

    def reading(self) -> dict[str, Any]:
        """The values as the uploaded masks have them: of coloured masks the colours."""
        own = {label: key for key, label in reversed(self.codes.items()) if key.startswith("#")}
        background, ignore = self.cleaned_data["background"], self.cleaned_data["ignore"]
        return {"background": own.get(background, background), "ignore": [own.get(value, value) for value in ignore]}


class ClassForm(ClassModelForm):
    """The name and the colour of one class."""

    class Meta:
        model = DatasetClass
        fields = ["name", "color"]

    def clean_color(self) -> str:
        color: str = self.cleaned_data["color"]
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
            raise forms.ValidationError("Write the colour as # and six hexadecimal digits, such as #d63939.")
        return color.lower()

    def rename(self, user: Any) -> None:
        """Save through the service. When the service refuses, its reason becomes an error of the field."""
        values = self.cleaned_data
        try:
            services.rename_class(
                user=user,
                dataset=self.instance.dataset,
                value=self.instance.value,
                name=values["name"],
                color=values["color"],
            )
        except MedSegError as error:
            self.add_error(error.attr if error.attr in self.fields else None, error.detail)
