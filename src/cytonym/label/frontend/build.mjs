// Builds label.js and label.css into ../static (--out DIR: elsewhere); with --tests the tests, with --dev the page that runs without a server.
import { build } from "esbuild";
import { copyFileSync, mkdirSync, readdirSync } from "node:fs";

const at = process.argv.indexOf("--out");
const out = at < 0 ? "../static" : process.argv[at + 1];
const shared = { bundle: true, format: "esm", target: "es2022", charset: "utf8", logLevel: "warning" };
if (process.argv.includes("--tests")) {
  const entryPoints = readdirSync("tests").filter((name) => name.endsWith(".test.ts")).map((name) => `tests/${name}`);
  await build({ ...shared, entryPoints, outdir: "dist/tests", platform: "node", outExtension: { ".js": ".test.mjs" } });
} else if (process.argv.includes("--dev")) {
  mkdirSync("dist/dev", { recursive: true });
  await build({ ...shared, format: "iife", entryPoints: ["dev/main.ts", "dev/widget.ts"], outdir: "dist/dev", sourcemap: true });
  await build({ ...shared, entryPoints: ["src/style.css"], outfile: "dist/dev/label.css" });
  for (const page of ["index.html", "widget.html"]) copyFileSync(`dev/${page}`, `dist/dev/${page}`);
} else {
  await build({ ...shared, entryPoints: ["src/index.ts"], outfile: `${out}/label.js`, minify: true, legalComments: "none" });
  await build({ ...shared, entryPoints: ["src/style.css"], outfile: `${out}/label.css`, minify: true });
}
