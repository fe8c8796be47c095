// A Node program that aborts.
"use strict";

function crash() {
  process.abort();
}

console.log("ready");
if (process.argv[process.argv.length - 1] === "now") crash();
else process.stdin.once("data", crash);
