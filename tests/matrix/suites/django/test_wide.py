import pytest
from shelf.models import Book


@pytest.fixture(scope="module")
def in_the_database(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock():
        book = Book.objects.create(title="of the module")
        yield book
        book.delete()


def test_wide(in_the_database, db):
    assert Book.objects.get().title == "of the module"


def test_wide_again(in_the_database, db):
    Book.objects.all().delete()


def test_wide_once_more(in_the_database, db):
    assert Book.objects.count() == 1
