import pytest
from django.core import mail
from django.db import IntegrityError, connection, transaction
from django.test import TestCase
from shelf.models import Book


def test_db(db):
    assert not Book.objects.filter(title="mine").exists()
    Book.objects.create(title="mine")
    assert Book.objects.filter(title="mine").count() == 1


def test_db_again(db):
    assert not Book.objects.filter(title="mine").exists()


@pytest.mark.django_db(transaction=True)
def test_transaction():
    Book.objects.create(title="mine")
    with pytest.raises(IntegrityError), transaction.atomic():
        Book.objects.create(title="mine")
    assert Book.objects.count() == 1


def test_transactional_db(transactional_db):
    assert Book.objects.count() == 0


@pytest.mark.django_db(transaction=True, reset_sequences=True)
def test_sequences():
    assert Book.objects.create(title="first").pk == 1


def test_client(client, db):
    assert client.post("/books/", "posted", content_type="text/plain").content == b"posted"


@pytest.mark.django_db
def test_broken_view(client):
    client.get("/broken/")


def test_admin(admin_client, admin_user):
    assert admin_user.is_superuser


def test_no_database():
    Book.objects.count()


def test_queries(django_assert_num_queries, db):
    with django_assert_num_queries(1):
        list(Book.objects.all())
    with django_assert_num_queries(2):
        list(Book.objects.all())


def test_on_commit(django_capture_on_commit_callbacks, db):
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        transaction.on_commit(lambda: mail.send_mail("s", "b", "a@b.c", ["d@e.f"]))
    assert len(callbacks) == len(mail.outbox) == 1


def test_settings(settings):
    settings.ALLOWED_HOSTS = []
    assert mail.outbox == []


def test_settings_again(settings):
    assert settings.ALLOWED_HOSTS != []


class TestInClass(TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.book = Book.objects.create(title="of the class")

    def test_one(self):
        self.book.title = "changed"
        self.book.save()

    def test_two(self):
        self.assertEqual(Book.objects.get().title, "of the class")
        self.assertNumQueries(1, lambda: list(Book.objects.all()))


def test_vendor(db):
    assert connection.vendor == "sqlite"
