// The policies of deploy/policies, filled in. They are plain files because the daemon's doctor, the
// set-up script and the documents use the same ones.

import * as fs from "node:fs";
import * as path from "node:path";

/** What a placeholder becomes; a list takes the place of a whole element of an array. */
export type Values = Readonly<Record<string, string | readonly string[]>>;

/** Reads `NAME.json` in `directory` and replaces every `{{placeholder}}`; throws if one has no value. */
export function policy(directory: string, name: string, values: Values): string {
    const text = fs.readFileSync(path.join(directory, `${name}.json`), "utf8");
    return JSON.stringify(fill(JSON.parse(text), name, values));
}

function fill(node: unknown, name: string, values: Values): unknown {
    if (typeof node === "string") return fillText(node, name, values);
    if (Array.isArray(node)) return node.flatMap((element) => fillElement(element, name, values));
    if (node === null || typeof node !== "object") return node;
    const filled = Object.entries(node).map(([key, value]) => [
        fillText(key, name, values),
        fill(value, name, values),
    ]);
    return Object.fromEntries(filled);
}

function fillElement(element: unknown, name: string, values: Values): unknown[] {
    const whole = typeof element === "string" ? /^\{\{(\w+)\}\}$/.exec(element) : null;
    const list = whole === null ? undefined : values[whole[1] as string];
    return Array.isArray(list) ? list : [fill(element, name, values)];
}

function fillText(text: string, name: string, values: Values): string {
    return text.replace(/\{\{(\w+)\}\}/g, (_, key: string) => {
        const value = values[key];
        if (typeof value !== "string") throw new Error(`${name}.json: no value for {{${key}}}`);
        return value;
    });
}
