# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import gzip
import json

import pytest

from tasks import config, errors, reddit, task


def webis(author, number, /, **changes):
  """A line of Webis-TLDR-17; None takes a field away."""
  content, summary = f'I said {author}\nsaw it {number} times.', f'saw it {number} times'
  value = {
    'author': author,
    'body': f'{content}\n\nTL;DR: {summary}',
    'normalizedBody': f'{content} \n\nTL;DR: {summary} ',
    'subreddit': 'tifu',
    'subreddit_id': 't5_2qh33',
    'id': f'c{author}{number}',
    'content': content,
    'summary': summary,
    **changes,
  }
  return {key: item for key, item in value.items() if item is not None}


def tifu(author, number, /, **changes):
  """A line of Reddit TIFU, to which an author was added."""
  return {
    'title_tokenized': ['tifu', 'by', 'it'],
    'permalink': '/r/tifu/comments/1',
    'title': 'TIFU by it',
    'url': 'https://www.reddit.com/r/tifu/comments/1',
    'num_comments': 3,
    'tldr': f'did it {number} times',
    'created_utc': 1.0,
    'trimmed_title': 'it',
    'ups': 1,
    'selftext_html': None,
    'score': 1,
    'upvote_ratio': 0.9,
    'selftext': 'never to be read',
    'id': f't{author}{number}',
    'selftext_without_tldr': f'So {author} did it {number} times.',
    'author': author,
    **changes,
  }


def write(path, *values):
  """Lines of JSON."""
  path.write_text(''.join(json.dumps(value) + '\n' for value in values), encoding='utf-8')
  return path


def load(path, cache, **changes):
  settings = config.RunConfig(task='reddit_summarization', data_dir=str(path), **changes)
  return reddit.load_reddit_summarization(task.Request(settings, cache, lambda text: None))


def one(value, tmp_path):
  """The example that a line becomes."""
  data = load(write(tmp_path / 'one.json', value), tmp_path / 'cache', min_examples=1)
  ((example,),) = data.train.values()
  return example


def test_both_formats_are_split_by_author(tmp_path):
  for number in range(10):
    author = f'a{number}'
    write(
      tmp_path / f'{number}.json', webis(author, 1), tifu(author, 2), webis(f'single{number}', 1)
    )
  data = load(tmp_path, tmp_path / 'cache', min_examples=2)
  splits = [set(data.split(name)) for name in ('train', 'validation', 'test')]
  assert [len(split) for split in splits] == [8, 1, 1]
  assert set.union(*splits) == {f'a{number}' for number in range(10)}
  assert any('fewer than 2 examples (--min-examples): 10' in said for said in data.left_out)
  client = next(iter(data.train))
  assert list(data.train[client]) == [
    (f'I said {client} saw it 1 times.', 'saw it 1 times', ''),
    (f'So {client} did it 2 times.', 'did it 2 times', ''),
  ]


@pytest.mark.parametrize(
  ('body', 'summary', 'kept'),
  [
    ('A long story.\n\nTL;DR: It was long.', 'It was long.', 'A long story.'),
    ('tldr - It was long.\n\nA long story.', 'It was long.', 'A long story.'),
    ('A long story. TL:DR It  was\nlong.', 'It was long.', 'A long story.'),
    # The summary was cleaned, so it is not in the body any more.
    ('A long story. **TL; DR** It *was* long.', 'It was long.', 'A long story. **'),
    ('It was long. Really. Tl;dr: It was long.', 'It was long.', 'It was long. Really.'),
    ('A long story without a mark.', 'It was long.', 'A long story without a mark.'),
  ],
)
def test_a_body_without_its_summary(body, summary, kept, tmp_path):
  value = webis('a', 1, content=None, normalizedBody=None, body=body, summary=summary)
  assert one(value, tmp_path) == (kept, summary, '')


@pytest.mark.parametrize('documents', ['so i did it.', ['so', 'i did it.']])
def test_the_documents_of_the_hub_are_read_too(tmp_path, documents):
  value = {'documents': documents, 'tldr': 'did it', 'title': 'it', 'author': 'a', 'ups': 1.0}
  assert one(value, tmp_path) == ('so i did it.', 'did it', '')


def test_posts_without_author_are_clients_of_their_own(tmp_path):
  posts = [tifu('a', number) for number in range(3)]
  for post, author in zip(posts, ({}, {'author': None}, {'author': 'a'}), strict=True):
    del post['author']
    post |= author
  del posts[1]['id']
  path = write(tmp_path / 'posts.jsonl', *posts)
  data = load(path, tmp_path / 'cache')
  clients = set(data.train) | set(data.validation) | set(data.test)
  assert clients == {'a', 'post ta0', 'post posts.jsonl, line 2'}
  assert data.left_out[-1] == 'Posts that name no author, each a client of its own: 2.'


def test_posts_of_nobody_and_without_summary_are_no_error(tmp_path):
  path = write(
    tmp_path / 'posts.jsonl',
    *(webis('a', number) for number in range(3)),
    webis('[deleted]', 1),
    tifu('a', 1, tldr=None),
    # As TIFU is published: no author. Without a TL;DR it is of no use either way.
    {key: item for key, item in tifu('a', 2, tldr=None).items() if key != 'author'},
  )
  data = load(path, tmp_path / 'cache')
  assert set(data.train) == {'a'}
  assert len(data.train['a']) == 3
  assert "Posts without a TL;DR ('tldr' is null): 2." in data.left_out
  assert any('deleted accounts' in said and said.endswith(': 1.') for said in data.left_out)


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    (webis('a', 9, author=None), "has no field 'author': it has "),
    (webis('a', 9, author=7), "has no text in 'author': 7"),
    (webis('a', 9, summary=' '), "has an empty 'summary'"),
    (webis('a', 9, summary=None), "has neither 'summary' .* nor 'tldr' .*: it has author, body"),
    (
      webis('a', 9, content='', normalizedBody='', body=''),
      "has an empty 'content'",
    ),
    (
      webis('a', 9, content=None, normalizedBody=None, body='TL;DR: saw it 9 times'),
      "has nothing but the summary in 'body'",
    ),
    (webis('a', 9, id='ca1'), "repeats an id: 'ca1' is of .*posts.jsonl, line 1"),
    (tifu('a', 9, tldr=''), "has an empty 'tldr'"),
    (tifu('a', 9, selftext_without_tldr=''), "has an empty 'selftext_without_tldr'"),
    ([], 'is not a JSON object'),
  ],
)  # fmt: skip
def test_a_bad_line_is_named_or_counted(value, message, tmp_path):
  path = write(tmp_path / 'posts.jsonl', webis('a', 1), webis('a', 2), value)
  with pytest.raises(errors.UserError, match=f'^{path}, line 3: {message}') as error:
    load(path, tmp_path / 'cache')
  assert '\n' not in str(error.value)
  data = load(path, tmp_path / 'cache', skip_bad_records=True)
  assert len(data.train['a']) == 2
  assert data.left_out[0].startswith('Bad records skipped: ')
  assert data.left_out[0].endswith('(1).')


def test_packed_files_are_read(tmp_path):
  plain = write(tmp_path / 'plain', webis('a', 1), webis('a', 2))
  (tmp_path / 'posts.json.gz').write_bytes(gzip.compress(plain.read_bytes()))
  assert len(load(tmp_path, tmp_path / 'cache').train['a']) == 2
