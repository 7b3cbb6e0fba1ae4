"""The pods of a RayJob as hosts: our image's folders and environment, the RayJob's mounts, KubeRay's commands."""

import re
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.hosts import Host, Network
from support.kube_manifests import Document, of_kind
from support.kuberay_commands import AGENT_PORT, READY_PATH, RayJobRun, quantity, shell
from support.ray_hosts import PROJECT, RayHosts, wait_until

# Ray gives up a start that takes half a minute, and Kubernetes then starts the pod's container anew.
AGAIN = "until ( {script} ); do ray stop --force; sleep 1; done"
# The folders of the image on top of the machine's: what lies beside them stays, what is made in them is the host's own.
DRESS = """
mkdir -p {layers} && mount -t tmpfs tmpfs {layers}
for top in etc opt; do
    mkdir -p {layers}/$top {layers}/$top-work
    mount -t overlay overlay -o lowerdir=/$top,upperdir={layers}/$top,workdir={layers}/$top-work /$top
done
mount --bind {folder}/hosts /etc/hosts
# The image holds the project as files alone, by PYTHONPATH; here it is installed as well.
for link in {packages}/__editable__*speechclip*; do mount --bind /dev/null $link; done
mkdir -p /opt/venv {work_dir}
mount --rbind {prefix} /opt/venv
mount --bind {project} {work_dir}
# Ray reads here how much memory its container may take, and cuts its object store by it. Nothing enforces it.
mount -t tmpfs tmpfs /sys/fs/cgroup
echo {memory} > /sys/fs/cgroup/memory.max
echo 0 > /sys/fs/cgroup/memory.current
printf 'inactive_file 0\nactive_file 0\n' > /sys/fs/cgroup/memory.stat
mount -o remount,size={memory} /dev/shm
"""
DOCKERFILE = PROJECT / "cluster" / "Dockerfile"


def work_dir() -> str:
    """Where the image's commands start."""
    return re.findall(r"^WORKDIR (.*)$", DOCKERFILE.read_text(), re.MULTILINE)[-1]


def image_environment(path: str) -> dict[str, str]:
    """The environment that the image gives, on top of that path."""
    last = DOCKERFILE.read_text().rpartition("\nENV ")[2].replace("\\\n", " ").splitlines()[0]
    given = dict(word.split("=", 1) for word in last.split())
    return given | {"PATH": given["PATH"].replace("$PATH", path)}


class RayJobHosts(RayHosts):
    """The pods of one RayJob, started as KubeRay starts them; the token is the one that it would make."""

    def __init__(
        self, network: Network, documents: list[Document], project: Path, environment: Mapping[str, str]
    ) -> None:
        (job,) = of_kind(documents, "RayJob")
        self.documents, self.project, self.run = documents, project, RayJobRun(job)
        super().__init__(network)
        self.token = self.run.token
        # There is no name server here, which gRPC would ask rather than read /etc/hosts.
        names = {"GRPC_DNS_RESOLVER": "native"}
        self.environment = image_environment("/usr/local/bin:/usr/bin:/bin") | names | dict(environment)
        self.pods: list[Host] = []

    def start(self) -> None:
        """The head and as many workers of each group as the RayJob names, once the kubelet would call them ready."""
        head = self.run.spec["headGroupSpec"]
        self._dress(self.head, head)
        self._launch(self.head, AGAIN.format(script=self.run.head_script()), self.run.environment(head, self.head.name))
        self.pods.append(self.head)
        for group in self.run.spec["workerGroupSpecs"]:
            for number in range(group["replicas"]):
                pod = self.network.add(f"{group['groupName']}-{number}")
                self._dress(pod, group)
                waits, starts = self.run.worker_scripts(group)
                self._launch(pod, waits, self.run.wait_environment(), log="wait.log")
                # The kubelet starts the pod's containers once those that come before them are done.
                waited = f"until grep -q 'GCS is ready' {pod.folder}/wait.log; do sleep 0.5; done"
                self._launch(pod, f"{waited}; {AGAIN.format(script=starts)}", self.run.environment(group, pod.name))
                self.pods.append(pod)
        for pod in self.pods:
            wait_until(lambda pod=pod: _is_ready(pod), f"{pod.name} is ready", otherwise=lambda: self._logs())

    def submit_and_follow(self) -> tuple[int, str]:
        """What the submitter's pod does, to its end: its exit code and what it said."""
        template = self.run.job["spec"]["submitterPodTemplate"]
        (container,) = template["spec"]["containers"]
        assert not {"command", "args", "env"} & container.keys(), "KubeRay would run another command"
        pod = self.network.add("submitter")
        self._dress(pod, {"template": template})
        environment = self.environment | self.run.submit_environment()
        code, said = pod.run(_inside(self.run.submit_script(), "ce"), environment, timeout=600)
        self.network.remove("submitter")
        return code, said

    def stop(self) -> None:
        """What `shutdownAfterJobFinishes` does."""
        for pod in self.pods:
            self.network.remove(pod.name)

    def _launch(self, pod: Host, script: str, environment: Mapping[str, str], log: str = "ray.log") -> None:
        with (pod.folder / log).open("w") as file:
            pod.start(_inside(script), self.environment | dict(environment), stdout=file)

    def _dress(self, pod: Host, group: Document) -> None:
        """The image's folders, the RayJob's ConfigMaps, and the name of the head's service."""
        with (pod.folder / "hosts").open("a") as names:
            names.write(f"{self.head.address} {self.run.service}\n")
        limit = group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        script = DRESS.format(
            memory=quantity(limit), layers=pod.folder / "layers", folder=pod.folder, prefix=sys.prefix,
            project=self.project, packages=sysconfig.get_path("purelib"), work_dir=work_dir(),
        )  # fmt: skip
        for path, files in _config_maps(group, self.documents).items():
            kept = pod.folder / "mounts" / Path(path).name
            kept.mkdir(parents=True)
            for name, text in files.items():
                (kept / name).write_text(text)
            script += f"mkdir -p {path}\nmount --bind -o ro {kept} {path}\n"
        code, said = pod.run(["bash", "-ec", script])
        assert code == 0, said

    def _logs(self) -> str:
        return "\n".join(f"{pod.name}: {(pod.folder / 'ray.log').read_text()[-2000:]}" for pod in self.pods)


def _inside(script: str, options: str = "c") -> list[str]:
    """The script in the image's folder, under the shell that KubeRay takes."""
    return ["/bin/sh", "-c", f'cd {work_dir()} && exec "$@"', "sh", *shell(script, options)]


def _config_maps(group: Document, documents: list[Document]) -> dict[str, dict[str, str]]:
    """The files of every ConfigMap that the group's first container mounts, by the path of the mount."""
    spec = group["template"]["spec"]
    maps: dict[str, Any] = {one["metadata"]["name"]: one["data"] for one in of_kind(documents, "ConfigMap")}
    names = {volume["name"]: volume["configMap"]["name"] for volume in spec.get("volumes", []) if "configMap" in volume}
    mounts = spec["containers"][0].get("volumeMounts", [])
    return {mount["mountPath"]: maps[names[mount["name"]]] for mount in mounts if mount["name"] in names}


def _is_ready(pod: Host) -> bool:
    try:
        with urllib.request.urlopen(f"http://{pod.address}:{AGENT_PORT}{READY_PATH}", timeout=10) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
