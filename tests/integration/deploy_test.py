# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is in deploy/ fits together, and fits the command line."""

import os
import pathlib
import re
import subprocess

import pytest
import typer.main
import yaml

from tasks import backbones, cache, cli, worker_binary

DEPLOY = pathlib.Path(__file__).parents[2] / 'deploy'
_PORT = 8000


def _parsed(arguments):
  """The options of a `hetlora` command line, as the command takes them; wrong ones raise."""
  commands = typer.main.get_command(cli.app)
  context = commands.commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))
  return context.params


@pytest.fixture(scope='module')
def compose():
  return yaml.safe_load((DEPLOY / 'compose.yaml').read_text())


@pytest.fixture(scope='module')
def kubernetes():
  """The objects by kind."""
  objects = list(yaml.safe_load_all((DEPLOY / 'kubernetes.yaml').read_text()))
  by_kind = {one['kind']: one for one in objects}
  assert len(by_kind) == len(objects)
  return by_kind


def _pod(object_):
  """Labels, specification and only container of the pods that an object makes."""
  template = object_['spec']['template']
  (container,) = template['spec']['containers']
  return template['metadata']['labels'], template['spec'], container


def _matches(selector, labels):
  return selector.items() <= labels.items()


def test_dockerfile_starts_a_worker_as_nobody():
  text = (DEPLOY / 'Dockerfile').read_text()
  lines = dict(line.split(' ', 1) for line in text.splitlines() if re.match('[A-Z]+ ', line))
  assert int(lines['USER']) != 0
  assert int(lines['EXPOSE']) == _PORT
  options = _parsed(yaml.safe_load(lines['CMD']))
  assert (options['host'], options['port']) == ('0.0.0.0', _PORT)


def test_dockerfile_prepares_worker_and_base_model_where_they_are_looked_for(monkeypatch):
  text = (DEPLOY / 'Dockerfile').read_text()
  prepared = []
  monkeypatch.setattr(worker_binary, 'prepare', prepared.append)
  monkeypatch.setattr(backbones, 'load_base_model', lambda _, cache: prepared.append(cache))
  monkeypatch.delenv('HETLORA_CACHE', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', re.search(r'XDG_CACHE_HOME=(\S+)', text)[1])
  for script in re.findall(r"python -c '(.*)'", text):
    exec(script, {})
  assert prepared == [cache.cache_directory()] * 2
  assert str(prepared[0]) in re.search(r'install --directory (.*)', text)[1]
  # Before the user changes, it would be root's, and of no use to others.
  assert text.index('USER ') < text.index('python -c')


def test_image_holds_no_token():
  ignored = (DEPLOY / 'Dockerfile.dockerignore').read_text().splitlines()
  assert 'deploy/token' in ignored
  assert '.git' in ignored


def test_compose_drivers_workers_are_its_services(compose):
  services = dict(compose['services'])
  driver = services.pop('driver')
  options = _parsed(driver['command'])
  assert options['workers'] == ','.join(f'{name}:{_PORT}' for name in services)
  assert driver['depends_on'].keys() == services.keys()
  for worker in services.values():
    served = _parsed(worker['command'])
    assert (served['host'], served['port']) == ('0.0.0.0', _PORT)
    assert str(_PORT) in worker['healthcheck']['test'][-1]
    assert 'ports' not in worker
  cores = [worker['cpuset'] for worker in services.values()]
  assert len(set(cores)) == len(cores)


def test_compose_mounts_the_base_model_at_one_place(compose):
  services = dict(compose['services'])
  driver = services.pop('driver')
  cache = driver['environment']['HETLORA_CACHE']
  assert f'cache:{cache}' in driver['volumes']
  assert all(worker['volumes'] == [f'cache:{cache}:ro'] for worker in services.values())
  output = pathlib.PurePosixPath(str(_parsed(driver['command'])['output_dir']))
  assert f'runs:{output.parent}' in driver['volumes']
  assert compose['volumes'].keys() == {'cache', 'runs'}


def test_compose_network_is_closed_and_everybody_has_the_token(compose):
  assert compose['networks'] == {'private': {'internal': True}}
  for service in compose['services'].values():
    assert service['networks'] == ['private']
    assert str(_parsed(service['command'])['token_file']) == '/run/secrets/token'
    assert service['secrets'] == list(compose['secrets'])
    assert (DEPLOY / service['build']['context'] / service['build']['dockerfile']).is_file()


def test_kubernetes_selectors_find_their_pods(kubernetes):
  worker, _, _ = _pod(kubernetes['StatefulSet'])
  driver, _, _ = _pod(kubernetes['Job'])
  policy = kubernetes['NetworkPolicy']['spec']
  (rule,) = policy['ingress']
  (source,) = rule['from']
  selectors = [
    kubernetes['Service']['spec']['selector'],
    kubernetes['StatefulSet']['spec']['selector']['matchLabels'],
    policy['podSelector']['matchLabels'],
  ]
  for selector in selectors:
    assert _matches(selector, worker)
    assert not _matches(selector, driver)
  allowed = source['podSelector']['matchLabels']
  assert _matches(allowed, driver)
  assert not _matches(allowed, worker)
  assert policy['policyTypes'] == ['Ingress', 'Egress']
  assert policy['egress'] == []


def test_kubernetes_ports_agree(kubernetes):
  _, _, container = _pod(kubernetes['StatefulSet'])
  served = _parsed(container['args'])
  (port,) = container['ports']
  (service,) = kubernetes['Service']['spec']['ports']
  (rule,) = kubernetes['NetworkPolicy']['spec']['ingress']
  probes = [container[f'{name}Probe']['grpc'] for name in ('startup', 'readiness', 'liveness')]
  assert served['host'] == '0.0.0.0'
  assert service['targetPort'] == port['name']
  assert rule['ports'] == [{'protocol': 'TCP', 'port': _PORT}]
  assert {served['port'], port['containerPort'], service['port']} == {_PORT}
  assert probes == [{'port': _PORT}] * 3


def test_kubernetes_worker_trains_a_client_for_each_core(kubernetes):
  _, _, container = _pod(kubernetes['StatefulSet'])
  clients = str(_parsed(container['args'])['max_concurrent_clients'])
  assert container['resources']['requests'] == container['resources']['limits']
  assert container['resources']['limits']['cpu'] == clients
  threads = [one['value'] for one in container['env'] if one['name'].startswith('TF_NUM_')]
  assert threads == [clients, clients]


def _driver_command(kubernetes, tmp_path, kept_run):
  """What the driver's script runs, with a `hetlora` that tells its arguments."""
  _, _, container = _pod(kubernetes['Job'])
  shell, flags, script = container['command']
  stub = tmp_path / 'hetlora'
  stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
  stub.chmod(0o700)
  environment = {one['name']: one['value'] for one in container['env']}
  script = script.replace('/runs/', f'{tmp_path}/')
  if kept_run:
    (tmp_path / 'demo').mkdir()
    (tmp_path / 'demo' / 'config.json').touch()
  printed = subprocess.run(
    [shell, flags, script],
    env={**environment, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'},
    capture_output=True,
    text=True,
    check=True,
  )
  return _parsed(printed.stdout.splitlines())


def test_kubernetes_driver_names_every_worker(kubernetes, tmp_path):
  options = _driver_command(kubernetes, tmp_path, kept_run=False)
  stateful = kubernetes['StatefulSet']
  service = kubernetes['Service']['metadata']['name']
  assert stateful['spec']['serviceName'] == service
  name, replicas = stateful['metadata']['name'], stateful['spec']['replicas']
  addresses = [f'{name}-{index}.{service}:{_PORT}' for index in range(replicas)]
  assert options['workers'] == ','.join(addresses)
  assert not options['resume']


def test_kubernetes_driver_goes_on_with_a_run_that_is_there(kubernetes, tmp_path):
  assert _driver_command(kubernetes, tmp_path, kept_run=True)['resume']


def test_kubernetes_volumes_are_there(kubernetes, tmp_path):
  own = {kubernetes['PersistentVolumeClaim']['metadata']['name']}
  # What the head of the file tells to make.
  told = {'hetlora-cache', 'hetlora-token'}
  head = (DEPLOY / 'kubernetes.yaml').read_text().partition('\napiVersion')[0]
  assert all(name in head for name in told)
  for kind in ('StatefulSet', 'Job'):
    _, spec, container = _pod(kubernetes[kind])
    volumes = {volume['name']: volume for volume in spec['volumes']}
    mounts = {mount['name']: mount for mount in container['volumeMounts']}
    assert volumes.keys() == mounts.keys()
    claims = [v['persistentVolumeClaim'] for v in volumes.values() if 'persistentVolumeClaim' in v]
    assert {claim['claimName'] for claim in claims} <= own | told
    assert volumes['token']['secret']['secretName'] in told
    # Where the base model is baked into computations.
    assert mounts['cache']['mountPath'] == '/cache'
    assert mounts['cache'].get('readOnly', False) == (kind == 'StatefulSet')
    options = (
      _parsed(container['args'])
      if kind == 'StatefulSet'
      else _driver_command(kubernetes, tmp_path, kept_run=False)
    )
    assert str(options['token_file']) == f'{mounts["token"]["mountPath"]}/token'
  assert {'name': 'HETLORA_CACHE', 'value': '/cache'} in container['env']


def test_kubernetes_pods_have_no_rights(kubernetes):
  for kind in ('StatefulSet', 'Job'):
    _, spec, container = _pod(kubernetes[kind])
    assert spec['securityContext']['runAsNonRoot']
    assert not spec['automountServiceAccountToken']
    assert container['securityContext'] == {
      'allowPrivilegeEscalation': False,
      'readOnlyRootFilesystem': True,
      'capabilities': {'drop': ['ALL']},
    }
