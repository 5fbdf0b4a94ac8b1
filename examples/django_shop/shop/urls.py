"""Where the views are."""

from django.urls import path

from shop import views

urlpatterns = [
    path("products/<str:sku>", views.product),
    path("search", views.search),
    path("login", views.sign_in),
    path("cart", views.add_to_cart),
    path("checkout", views.check_out),
]
