"use strict";
(function () {
  var every = 2000;
  function put(next, id) {
    var old = document.getElementById(id), fresh = next.getElementById(id);
    if (!old || !fresh || old.innerHTML === fresh.innerHTML) return;
    var label = document.activeElement && document.activeElement.getAttribute("aria-label");
    var scrolled = Array.prototype.map.call(old.querySelectorAll(".scroll"), function (e) { return e.scrollLeft; });
    old.innerHTML = fresh.innerHTML;
    old.querySelectorAll(".scroll").forEach(function (e, i) {
      e.scrollLeft = scrolled[i] || 0;
      if (label && e.getAttribute("aria-label") === label) e.focus({ preventScroll: true });
    });
  }
  function load() {
    if (document.hidden) return setTimeout(load, every);
    fetch(location.pathname, { cache: "no-store" }).then(function (r) {
      if (!r.ok) throw new Error(r.status);
      return r.text();
    }).then(function (text) {
      var next = new DOMParser().parseFromString(text, "text/html");
      put(next, "main");
      put(next, "at");
      document.title = next.title;
      document.body.classList.remove("stale");
    }).catch(function () {
      document.body.classList.add("stale");
      document.title = "no answer";
    }).then(function () { setTimeout(load, every); });
  }
  setTimeout(load, every);
})();
