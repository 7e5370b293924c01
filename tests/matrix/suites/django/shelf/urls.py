from django.http import HttpResponse
from django.urls import path

from .models import Book


def books(request):
    if request.method == "POST":
        Book.objects.create(title=request.body.decode())
    return HttpResponse(",".join(Book.objects.order_by("title").values_list("title", flat=True)))


def broken(request):
    raise ValueError("broken view")


urlpatterns = [path("books/", books), path("broken/", broken)]
