// What scrolls can be reached by keyboard, and what the theme makes of each piece of code has a name of its own.
const tidy = () => {
  document.querySelectorAll(".md-typeset pre > code, .md-typeset__scrollwrap").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
  document.querySelectorAll(".md-code__nav").forEach((tools, number) => {
    tools.setAttribute("aria-label", `Code ${number + 1}`);
  });
};

new MutationObserver(tidy).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", tidy);
tidy();
