"use strict";
window.addEventListener("error", (event) => { document.body.dataset.error = event.message; });
document.addEventListener("securitypolicyviolation", (event) => { document.body.dataset.error = "blocked: " + event.violatedDirective; });
