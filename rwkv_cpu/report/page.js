"use strict";
(function () {
  var root = document.documentElement;
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var button = document.getElementById("theme");
  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  }
  function name() {
    button.textContent = isDark() ? "Light" : "Dark";
  }
  button.hidden = false;
  button.addEventListener("click", function () {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  name();

  var tip = document.getElementById("tip");
  function show(event) {
    var target = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.classList.toggle("on", target !== null);
    if (target === null) {
      return;
    }
    tip.textContent = target.getAttribute("data-tip");
    var box = target.getBoundingClientRect();
    var near = box.width > 120 && event.clientX ? event.clientX : box.left + box.width / 2;
    if (box.height > 60 && event.clientY) {
      box = { top: event.clientY - 6, bottom: event.clientY + 6 };
    }
    var x = near - tip.offsetWidth / 2;
    var y = box.top - tip.offsetHeight - 8;
    tip.style.left = Math.max(8, Math.min(x, window.innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = (y < 8 ? box.bottom + 8 : y) + "px";
  }
  document.addEventListener("mouseover", show);
  document.addEventListener("focusin", show);
  document.addEventListener("click", show);
  document.addEventListener("scroll", function () { tip.classList.remove("on"); }, true);
})();
