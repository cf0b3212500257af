//! What the pages say beyond the definitions of the command line.

/// A part of a section.
pub enum Block {
    /// A paragraph.
    Text(&'static str),
    /// Something and its explanation.
    Item(&'static str, &'static str),
    /// Lines to be typed, or to be seen.
    Code(&'static str),
}

/// A section of a page. One called DESCRIPTION replaces the generated one, and stands first.
pub struct Section {
    /// In capitals.
    pub title: &'static str,
    /// What it consists of.
    pub blocks: &'static [Block],
}

/// What the page of one command says.
pub struct Extra {
    /// The command; empty for the program itself.
    pub command: &'static str,
    /// Its sections, in their order.
    pub sections: &'static [Section],
}

use Block::{Code, Item, Text};

const fn section(title: &'static str, blocks: &'static [Block]) -> Section {
    Section { title, blocks }
}

const fn examples(blocks: &'static [Block]) -> Section {
    section("EXAMPLES", blocks)
}

/// Most commands.
const PLAIN_STATUS: Section = section(
    "EXIT STATUS",
    &[Item("0", "The command did what it was asked."), Item("1", "It did not; a message says why and what to do.")],
);

/// `kata-runtime`.
pub const RUNTIME: &[Extra] = &[
    Extra {
        command: "",
        sections: &[
            section(
                "DESCRIPTION",
                &[
                    Text(
                        "kata-runtime runs containers as the runtime specification of the Open Container Initiative describes them, each in a virtual machine with a Linux kernel of its own. It takes runc's commands and options, and gives runc's output and exit codes.",
                    ),
                    Text(
                        "A bundle is a directory with a config.json and a root file system. kata-runtime spec writes a config.json to start from.",
                    ),
                    Text(
                        "Where KVM works the virtual machine runs on it. Elsewhere QEMU emulates the machine, and a warning says so. What a virtual machine cannot honour, such as sharing the host's network, is refused before anything is started.",
                    ),
                    Text(
                        "kata-shim is the same program under another name: the host process that stands for one process of a detached container. Nobody calls it by hand.",
                    ),
                ],
            ),
            section(
                "EXIT STATUS",
                &[
                    Item("0", "The command did what it was asked."),
                    Item("1", "It did not; a message on standard error, or in the file that --log names, says why."),
                    Item("3", "There is no such command."),
                    Item("255", "exec started no process."),
                    Item(
                        "another",
                        "run and exec in the foreground end as the container's process did: with its exit code, or with 128 and the number of the signal that killed it.",
                    ),
                ],
            ),
            section(
                "ENVIRONMENT",
                &[
                    Item("KATA_CONF_FILE", "The configuration file, unless --config names one."),
                    Item("PATH", "QEMU is looked for here unless a QEMU of Kata's own is installed."),
                ],
            ),
            section(
                "FILES",
                &[
                    Item(
                        "/etc/kata-containers/configuration.toml",
                        "The configuration. None is needed. If it does not exist, the same below /usr/share/defaults/kata-containers and /opt/kata/share/defaults/kata-containers is looked for.",
                    ),
                    Item(
                        "config.d/*.toml",
                        "Beside the configuration: read after it, in the order of their names; a later file's key replaces an earlier one's.",
                    ),
                    Item(
                        "/usr/share/kata-containers/vmlinux.container",
                        "The guest kernel. Looked for in share/kata-containers beside the program's bin directory first.",
                    ),
                    Item("/usr/share/kata-containers/kata-containers-initrd.img", "The guest image, likewise."),
                    Item(
                        "/usr/lib/kata-containers/qemu/bin/qemu-system-x86_64",
                        "A QEMU of Kata's own, if it is installed. Preferred to the distribution's.",
                    ),
                    Item("/run/kata-runtime", "The state of containers, unless --root names another directory."),
                ],
            ),
            examples(&[
                Text("A shell in a virtual machine, in a bundle whose root file system is in bundle/rootfs:"),
                Code("kata-runtime spec --bundle bundle\nkata-runtime run --bundle bundle demo"),
                Text("A container in the background, a second process in it, and its end:"),
                Code(
                    "kata-runtime run --detach --bundle bundle demo\nkata-runtime exec demo uname -r\nkata-runtime delete --force demo",
                ),
            ]),
        ],
    },
    Extra {
        command: "create",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "Starts the virtual machine and prepares the container in it, without running its first process: that is what start does. Standard input, output and error of this command become the container's.",
                )],
            ),
            PLAIN_STATUS,
            examples(&[Code("kata-runtime create --bundle bundle --pid-file demo.pid demo\nkata-runtime start demo")]),
        ],
    },
    Extra {
        command: "run",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "Creates a container and runs it. In the foreground, standard input, output and error are the container's, signals are passed on to it, and the container is deleted when it has ended.",
                )],
            ),
            section(
                "EXIT STATUS",
                &[Text(
                    "The container's exit code, or 128 and the number of the signal that killed it; with --detach 0. 1 if it could not be run.",
                )],
            ),
            examples(&[Code("kata-runtime run --bundle bundle demo\nkata-runtime run --detach --bundle bundle demo")]),
        ],
    },
    Extra {
        command: "start",
        sections: &[
            PLAIN_STATUS,
            examples(&[Code("kata-runtime create --bundle bundle demo\nkata-runtime start demo")]),
        ],
    },
    Extra {
        command: "state",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "Prints the container's state as JSON: its name, its status (created, running, paused or stopped), its bundle, and the pid of the host process that stands for it.",
                )],
            ),
            PLAIN_STATUS,
            examples(&[Code("kata-runtime state demo")]),
        ],
    },
    Extra {
        command: "kill",
        sections: &[
            PLAIN_STATUS,
            examples(&[Code("kata-runtime kill demo\nkata-runtime kill demo KILL\nkata-runtime kill --all demo 9")]),
        ],
    },
    Extra {
        command: "delete",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "Removes a stopped container, its virtual machine and every trace of them on the host. With --force a running one is killed first, and what does not exist is no error.",
                )],
            ),
            PLAIN_STATUS,
            examples(&[Code("kata-runtime delete demo\nkata-runtime delete --force demo")]),
        ],
    },
    Extra {
        command: "exec",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "Runs another process in a running container. In the foreground it reads ahead on standard input; in a loop that reads a file, give it </dev/null.",
                )],
            ),
            section(
                "EXIT STATUS",
                &[Text(
                    "The process's exit code, or 128 and the number of the signal that killed it; with --detach 0. 255 if no process was started.",
                )],
            ),
            examples(&[
                Code("kata-runtime exec demo ps -ef\nkata-runtime exec --tty --user 1000:1000 --cwd /tmp demo sh"),
                Text("Options after the container's name belong to the command:"),
                Code("kata-runtime exec demo ls --all -d /"),
            ]),
        ],
    },
    Extra {
        command: "ps",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text("Lists the processes of a container by the pids that they have in the guest.")],
            ),
            PLAIN_STATUS,
            examples(&[Code(
                "kata-runtime ps demo\nkata-runtime ps demo -o pid,args\nkata-runtime ps --format json demo",
            )]),
        ],
    },
    Extra {
        command: "list",
        sections: &[PLAIN_STATUS, examples(&[Code("kata-runtime list\nkata-runtime list --format json")])],
    },
    Extra {
        command: "events",
        sections: &[
            section(
                "DESCRIPTION",
                &[
                    Text(
                        "Prints a line of JSON for what the container uses, now and then, and one each time that the guest's kernel kills a process of it for want of memory. Ends when the container stops.",
                    ),
                    Text("Figures of cgroups are those of the guest, in the form that runc gives them version 2."),
                ],
            ),
            PLAIN_STATUS,
            examples(&[Code("kata-runtime events --stats demo\nkata-runtime events --interval 1s demo")]),
        ],
    },
    Extra {
        command: "update",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "Changes the limits of a container in its guest. What is not given, or 0, stays as it is. The machine does not grow: a limit above its memory and processors means all of them.",
                )],
            ),
            PLAIN_STATUS,
            examples(&[
                Code("kata-runtime update --memory 256m --pids-limit 100 demo"),
                Code("echo '{\"cpu\": {\"quota\": 50000}}' | kata-runtime update --resources - demo"),
            ]),
        ],
    },
    Extra {
        command: "checkpoint",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "Always refused: the processes are those of the guest's kernel, which CRIU on the host cannot save.",
                )],
            ),
            PLAIN_STATUS,
            examples(&[Code("kata-runtime checkpoint demo")]),
        ],
    },
    Extra {
        command: "restore",
        sections: &[
            section("DESCRIPTION", &[Text("Always refused, as checkpoint is.")]),
            PLAIN_STATUS,
            examples(&[Code("kata-runtime restore demo")]),
        ],
    },
    Extra { command: "pause", sections: &[PLAIN_STATUS, examples(&[Code("kata-runtime pause demo")])] },
    Extra { command: "resume", sections: &[PLAIN_STATUS, examples(&[Code("kata-runtime resume demo")])] },
    Extra {
        command: "spec",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "Writes a config.json that runs a shell in the root file system rootfs beside it. A file that exists is not replaced.",
                )],
            ),
            PLAIN_STATUS,
            examples(&[Code("mkdir -p bundle/rootfs\nkata-runtime spec --bundle bundle")]),
        ],
    },
    Extra { command: "features", sections: &[PLAIN_STATUS, examples(&[Code("kata-runtime features")])] },
    Extra {
        command: "check",
        sections: &[
            section(
                "DESCRIPTION",
                &[
                    Text(
                        "Tries what containers need of this host: a small guest on /dev/kvm, a tap with frames redirected to it, the file server in its jail; and looks for QEMU, the guest's kernel and image. A line for each says works, lacks (containers run, but slower or with less) or fails, and the next one what to do. Nothing is left behind.",
                    ),
                    Text(
                        "The last two lines are Kata's own words: System is capable of running Kata Containers, System can currently create Kata Containers.",
                    ),
                ],
            ),
            section(
                "EXIT STATUS",
                &[Item("0", "Nothing fails; with --strict, nothing lacks either."), Item("1", "Something does.")],
            ),
            examples(&[Code(
                "kata-runtime check\nkata-runtime check list\nkata-runtime check kvm qemu\nkata-runtime check --json --strict",
            )]),
        ],
    },
    Extra {
        command: "env",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "Prints which files are used, of what version they are, and which values are in force, as TOML or JSON under Kata's names. What is not there is empty, and a warning says why.",
                )],
            ),
            PLAIN_STATUS,
            examples(&[Code("kata-runtime env\nkata-runtime env --json")]),
        ],
    },
    Extra {
        command: "gc",
        sections: &[
            section(
                "DESCRIPTION",
                &[
                    Text(
                        "Lists and removes what is left over of sandboxes whose processes were killed, or of before the host was started anew: state directories and what they name (processes, cgroups, sockets), redirections in network namespaces where no sandbox lives, unfinished files. A sandbox that lives is never touched, and nothing that is not provably ours.",
                    ),
                    Text(
                        "With --root, only what is below that directory. Without, also what dead shims of containerd have left. Hooks are not run; kata-runtime delete --force runs them.",
                    ),
                ],
            ),
            PLAIN_STATUS,
            examples(&[Code("kata-runtime gc --dry-run\nkata-runtime gc")]),
        ],
    },
    Extra {
        command: "doctor",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "Runs check and gc --dry-run. With --boot it also boots a guest without a container, asks its agent something, ends it, and prints where the time went. The end is a verdict in plain words.",
                )],
            ),
            section(
                "EXIT STATUS",
                &[Item("0", "Healthy."), Item("1", "Not healthy, for the reasons that are listed.")],
            ),
            examples(&[Code("kata-runtime doctor\nkata-runtime doctor --boot")]),
        ],
    },
    Extra {
        command: "config",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "config explain prints each key of the configuration as it is in force: its value, the file and line that it comes from or that it is the default, what it means, what it may be, and whether a pod's annotation may set it.",
                )],
            ),
            PLAIN_STATUS,
            examples(&[Code(
                "kata-runtime config explain\nkata-runtime config explain default_memory\nkata-runtime --config my.toml config explain --json",
            )]),
        ],
    },
    Extra {
        command: "timeline",
        sections: &[
            section(
                "DESCRIPTION",
                &[Text(
                    "Prints the steps of a sandbox's start: the phase they belong to (caller, host, vmm, kernel, agent, container), who did them, when they were finished, and how long they took. The sandbox is one of kata-runtime's, or one of a shim's of containerd.",
                )],
            ),
            PLAIN_STATUS,
            examples(&[Code(
                "kata-runtime timeline demo\nkata-runtime timeline --json demo\nkata-runtime timeline --svg start.svg demo",
            )]),
        ],
    },
    Extra {
        command: "console",
        sections: &[
            section(
                "DESCRIPTION",
                &[
                    Text(
                        "Runs a program in the guest of a sandbox, outside of its containers, as root of the guest. It is refused unless the sandbox was started with debug_console_enabled = true in [agent.kata] of the configuration. Kata calls this exec, which is here, as in runc, the command that runs a process in a container.",
                    ),
                    Text(
                        "Without a command it is the guest's shell. The guest image that comes along has none, and no other program than the agent; one with a Debian system is built by kata-osbuilder.",
                    ),
                ],
            ),
            section(
                "EXIT STATUS",
                &[Text(
                    "The program's exit code, or 128 and the number of the signal that killed it. 1 if none was started.",
                )],
            ),
            examples(&[Code("kata-runtime console --tty demo\nkata-runtime console demo cat /proc/meminfo")]),
        ],
    },
    Extra { command: "version", sections: &[PLAIN_STATUS, examples(&[Code("kata-runtime version")])] },
];

/// What programs of the build side answer.
const BUILD_STATUS: Section = section(
    "EXIT STATUS",
    &[
        Item("0", "What was asked for is there."),
        Item("1", "It is not; a message on standard error says why and what to do. Nothing half-made is left."),
        Item("2", "The command line is not understood."),
    ],
);

/// Where programs of the build side keep things.
const BUILD_ENVIRONMENT: Section = section(
    "ENVIRONMENT",
    &[
        Item(
            "KATA_CACHE",
            "The directory for what was downloaded and built; by default kata in the user's cache directory.",
        ),
        Item(
            "SOURCE_DATE_EPOCH",
            "The time that what is built carries, in seconds since 1970; by default that of its source.",
        ),
    ],
);

/// `kata-kernel`.
pub const KERNEL: &[Extra] = &[
    Extra {
        command: "",
        sections: &[
            section(
                "DESCRIPTION",
                &[
                    Text(
                        "kata-kernel builds the kernel of Kata Containers' virtual machines from source: everything that a container workload needs is built in, there are no modules, and nothing else is there.",
                    ),
                    Text(
                        "Configuration fragments name the options that are wanted. They are laid over a configuration in which everything is off. Every option must have survived, or nothing is built and all that were lost are listed.",
                    ),
                ],
            ),
            BUILD_STATUS,
            BUILD_ENVIRONMENT,
            section(
                "FILES",
                &[
                    Item("kernel/sources.toml", "The version that is built, and its checksum."),
                    Item("kernel/fragments/*.conf", "The options for every architecture; those for one are in arch/."),
                    Item("guest-kernel/ARCH/", "In the cache: the result, unless --output names another directory."),
                ],
            ),
            examples(&[Code("kata-kernel build\nkata-kernel build --arch aarch64")]),
        ],
    },
    Extra {
        command: "build",
        sections: &[
            BUILD_STATUS,
            examples(&[
                Code("kata-kernel build --jobs 2"),
                Text("Another version, with options of one's own:"),
                Code("kata-kernel build --source linux-7.3.tar.xz --fragment mine.conf --output out"),
            ]),
        ],
    },
    Extra {
        command: "config",
        sections: &[BUILD_STATUS, examples(&[Code("kata-kernel config --arch aarch64 | grep VIRTIO")])],
    },
    Extra { command: "fetch", sections: &[BUILD_STATUS, examples(&[Code("kata-kernel fetch --locked")])] },
];

/// `kata-osbuilder`.
pub const OSBUILDER: &[Extra] = &[
    Extra {
        command: "",
        sections: &[
            section(
                "DESCRIPTION",
                &[
                    Text(
                        "kata-osbuilder builds what a virtual machine of Kata Containers boots from: guest images, as an initrd or as a disk whose every block is verified while it is read, and kernels taken out of a distribution's package.",
                    ),
                    Text(
                        "The default image holds one program, the agent. Images of a distribution are described by a definition: repositories, keys, packages, clean-up. Definitions come along and can be printed, copied and changed. The same inputs give the same bytes, and a bill of materials lies beside each image.",
                    ),
                ],
            ),
            BUILD_STATUS,
            BUILD_ENVIRONMENT,
            section(
                "FILES",
                &[
                    Item(
                        "IMAGE.verity",
                        "Beside a disk image: the root hash and the parameters that it is verified by.",
                    ),
                    Item("IMAGE.spdx.json", "Beside an image: its bill of materials."),
                ],
            ),
            examples(&[Code(
                "kata-osbuilder build --agent kata-agent --output initrd.img\nkata-osbuilder check initrd.img",
            )]),
        ],
    },
    Extra {
        command: "kernel",
        sections: &[
            BUILD_STATUS,
            examples(&[Code("kata-osbuilder kernel --vmlinuz /boot/vmlinuz-6.1.0-56-amd64 --output vmlinux")]),
        ],
    },
    Extra {
        command: "build",
        sections: &[
            BUILD_STATUS,
            BUILD_ENVIRONMENT,
            examples(&[
                Text("The agent and nothing else, compressed:"),
                Code("kata-osbuilder build --agent kata-agent --compression zstd --output initrd.img"),
                Text("A verified disk with a Debian system:"),
                Code("kata-osbuilder build --source debian --format image --agent kata-agent --output debian.img"),
                Text("A definition of one's own:"),
                Code(
                    "kata-osbuilder definition debian >mine.toml\nkata-osbuilder build --definition mine.toml --agent kata-agent --output mine.img",
                ),
            ]),
        ],
    },
    Extra {
        command: "check",
        sections: &[BUILD_STATUS, examples(&[Code("kata-osbuilder check --kernel vmlinux initrd.img")])],
    },
    Extra {
        command: "definition",
        sections: &[BUILD_STATUS, examples(&[Code("kata-osbuilder definition debian >mine.toml")])],
    },
    Extra { command: "verify", sections: &[BUILD_STATUS, examples(&[Code("kata-osbuilder verify debian.img")])] },
    Extra {
        command: "initrd",
        sections: &[BUILD_STATUS, examples(&[Code("kata-osbuilder initrd --agent kata-agent --output initrd.img")])],
    },
];
