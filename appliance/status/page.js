"use strict";
(function () {
  var every = 2000;
  document.documentElement.classList.add("script");

  // morph makes a node like another one and keeps what is the same, so that the focus,
  // the selection and the scroll positions stay.
  function morph(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || old.id !== fresh.id) {
      old.replaceWith(document.importNode(fresh, true));
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    if (old.hasAttribute("data-keep")) return;
    Array.from(old.attributes).forEach(function (a) { if (!fresh.hasAttribute(a.name)) old.removeAttribute(a.name); });
    Array.from(fresh.attributes).forEach(function (a) { if (old.getAttribute(a.name) !== a.value) old.setAttribute(a.name, a.value); });
    var was = Array.from(old.childNodes), is = Array.from(fresh.childNodes);
    is.forEach(function (node, i) {
      if (i < was.length) morph(was[i], node); else old.appendChild(document.importNode(node, true));
    });
    was.slice(is.length).forEach(function (node) { node.remove(); });
  }

  function load() {
    var selection = document.getSelection();
    if (document.hidden || selection && !selection.isCollapsed) return setTimeout(load, every);
    fetch(location.pathname, { cache: "no-store" }).then(function (r) {
      if (!r.ok) throw new Error(r.status);
      return r.text();
    }).then(function (text) {
      var next = new DOMParser().parseFromString(text, "text/html");
      ["main", "up", "at"].forEach(function (id) {
        var old = document.getElementById(id), fresh = next.getElementById(id);
        if (old && fresh) morph(old, fresh);
      });
      document.title = next.title;
      document.body.classList.remove("stale");
    }).catch(function () {
      document.body.classList.add("stale");
      document.title = "no answer";
    }).then(function () { setTimeout(load, every); });
  }
  setTimeout(load, every);

  // A page over plain HTTP has no clipboard: execCommand needs no permission, and if even
  // that fails the command stays selected.
  function copy(button) {
    var code = button.parentNode.querySelector("code"), selection = document.getSelection(), label = button.firstChild;
    function say(text) {
      if (!button.hasAttribute("data-keep")) button.setAttribute("data-keep", label.data);
      label.data = text;
      document.getElementById("said").textContent = text;
      clearTimeout(button.back);
      button.back = setTimeout(function () {
        label.data = button.getAttribute("data-keep");
        button.removeAttribute("data-keep");
        document.getElementById("said").textContent = "";
      }, 3000);
    }
    function select() {
      selection.selectAllChildren(code);
      var done = false;
      try { done = document.execCommand("copy"); } catch (e) { }
      if (done) selection.removeAllRanges();
      say(done ? "Copied" : "Selected: press Ctrl+C");
    }
    if (navigator.clipboard && window.isSecureContext) {
      navigator.clipboard.writeText(code.textContent).then(function () { say("Copied"); }, select);
    } else {
      select();
    }
  }
  document.addEventListener("click", function (event) {
    var button = event.target.closest && event.target.closest("button.copy");
    if (button) copy(button);
  });
})();
