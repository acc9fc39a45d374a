// Runs the program against Pulumi's mocks and keeps what it would create.

import * as pulumi from "@pulumi/pulumi";

import { Settings, readSettings } from "../config";
import { BackupInfra, createBackupInfra } from "../infra";

export const ACCOUNT = "123456789012";

/** `npm test` runs in deploy/pulumi, as Pulumi does. */
export const POLICIES = "../policies";

export interface Created {
    readonly type: string;
    readonly name: string;
    readonly inputs: any;
    options: pulumi.ResourceOptions;
}

export interface Stack {
    readonly resources: readonly Created[];
    readonly outputs: Record<keyof BackupInfra, string | undefined>;
    /** The only resource of a type, or of a type and name. */
    readonly one: (type: string, name?: string) => Created;
    readonly all: (type: string) => readonly Created[];
}

/** The least a stack needs, and whatever a test adds. */
export function config(extra: Record<string, string> = {}): Record<string, string> {
    const keys = { flyAppName: "my-app", flyOrgSlug: "my-org", ...extra };
    const { region, ...ours } = keys as Record<string, string>;
    const named = Object.entries(ours).map(([key, value]) => [`sqlite-backup-restore:${key}`, value]);
    return { "aws:region": region ?? "us-east-1", ...Object.fromEntries(named) };
}

export function settings(environment: string, extra?: Record<string, string>): Settings {
    return readSettings(environment, config(extra));
}

/** Everything that the stack `environment` would create. */
export async function deploy(environment: string, extra?: Record<string, string>): Promise<Stack> {
    const chosen = settings(environment, extra);
    const resources: Created[] = [];
    await mock(environment, resources);
    const options = new Map<string, pulumi.ResourceOptions>();
    const outputs = {} as Stack["outputs"];
    await pulumi.runtime.runInPulumiStack(async () => {
        pulumi.runtime.registerStackTransformation((args) => {
            options.set(`${args.type} ${args.name}`, args.opts);
            return undefined;
        });
        const infra = createBackupInfra(chosen, POLICIES);
        for (const [key, output] of Object.entries(infra)) {
            outputs[key as keyof BackupInfra] = await value(output);
        }
    });
    await pulumi.runtime.disconnect();
    for (const resource of resources) {
        resource.options = options.get(`${resource.type} ${resource.name}`) ?? {};
    }
    const all = (type: string) => resources.filter((resource) => resource.type.endsWith(`:${type}`));
    const one = (type: string, name?: string) => {
        const found = all(type).filter((resource) => name === undefined || resource.name === name);
        if (found.length !== 1) throw new Error(`${found.length} resources are ${type} ${name ?? ""}`);
        return found[0] as Created;
    };
    return { resources, outputs, one, all };
}

/** Puts mocks in the place of AWS; what is created is added to `resources`. */
export async function mock(stack: string, resources: Created[]): Promise<void> {
    const mocks: pulumi.runtime.Mocks = {
        newResource: ({ type, name, inputs }) => {
            if (type !== "pulumi:pulumi:Stack") resources.push({ type, name, inputs, options: {} });
            const kind = type.split(":").pop();
            return { id: `${name}-id`, state: { ...inputs, arn: `arn:mock:${kind}/${inputs.name ?? name}` } };
        },
        call: ({ token }) => {
            if (token === "aws:index/getCallerIdentity:getCallerIdentity") return { accountId: ACCOUNT };
            if (token === "aws:index/getPartition:getPartition") return { partition: "aws" };
            throw new Error(`nobody should call ${token}`);
        },
    };
    await pulumi.runtime.setMocks(mocks, "sqlite-backup-restore", stack, false);
}

export function value<T>(output: pulumi.Output<T> | undefined): Promise<T | undefined> {
    return new Promise((resolve) => (output === undefined ? resolve(undefined) : output.apply(resolve)));
}
