"""Forms of the dataset pages. The upload has none: the page sends it to the API, which lets it show the progress."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from django import forms

from datasets import services
from datasets.models import DatasetClass
from medseg_site.shared.base.errors import MedSegError

if TYPE_CHECKING:
    ClassModelForm = forms.ModelForm[DatasetClass]
else:
    ClassModelForm = forms.ModelForm


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
