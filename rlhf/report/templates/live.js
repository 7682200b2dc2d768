/* While training: load the page again, but not under a reader who types, chooses or has the page in the background. */
const seconds = Number(document.body.dataset.live || 0);
if (seconds) {
  setInterval(() => {
    if (!document.hidden && !/INPUT|SELECT/.test(document.activeElement.tagName)) location.reload();
  }, seconds * 1000);
}
