"""Forms of the dataset pages. (Uploads go to the API, which shows their progress.)"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django import forms

from datasets import services
from datasets.models import DatasetClass
from medseg_site.shared.errors import MedSegError

if TYPE_CHECKING:
    ClassModelForm = forms.ModelForm[DatasetClass]
else:
    ClassModelForm = forms.ModelForm


class ClassForm(ClassModelForm):
    """Name and colour of one class."""

    class Meta:
        model = DatasetClass
        fields = ["name", "color"]

    def rename(self) -> None:
        """Save through the service; what it refuses becomes an error of the field."""
        given = self.cleaned_data
        try:
            services.rename_class(
                dataset=self.instance.dataset, value=self.instance.value, name=given["name"], color=given["color"]
            )
        except MedSegError as error:
            self.add_error(error.attr if error.attr in self.fields else None, error.detail)
